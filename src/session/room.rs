//! What the image store has to know of sessions and of the configuration to keep room on its file system.

use std::collections::HashSet;

use crate::{
    config::Config,
    image::{InUse, Removed, Room},
    state::State,
};

/// The images of sessions and builds, also of those that a stopped server has left.
pub fn images_in_use(config: &Config) -> InUse {
    if !config.paths.db.exists() {
        return Ok(HashSet::new());
    }
    in_use(&State::open(&config.paths.db)?)
}

/// The same, of a database that is open.
pub fn in_use(state: &State) -> InUse {
    let used = state.images_in_use()?;
    Ok(used.iter().map(|digest| digest.parse()).collect::<Result<_, _>>()?)
}

/// The room that the configuration wants; `told` hears of what was removed for it.
pub fn room(config: &Config, told: impl Fn(&Removed) + Send + Sync + 'static) -> Room {
    let whole = config.clone();
    let room = Room::new(move || images_in_use(&whole), told);
    configure_room(&room, config);
    room
}

/// Follows a changed configuration.
pub fn configure_room(room: &Room, config: &Config) {
    // A name that is not valid is no image that could be there.
    room.configure(config.images.keep_free, config.defaults.image.parse().ok());
}
