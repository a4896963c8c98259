//! What is kept for the next builds.

use std::io;

use crate::{
    config::Config,
    image::{KeptFile, Packages, Upstream},
};

/// Archives of languages, then packages that builds have downloaded; of each kind what was used last comes first.
pub fn kept(config: &Config) -> io::Result<Vec<(&'static str, KeptFile)>> {
    let cache = config.paths.state_dir.join("cache");
    let languages = Upstream::new(config.builds.mirrors.clone(), &cache).list()?;
    let packages = Packages::new(&cache, config.builds.package_cache).list()?;
    let of_kind = |kind, files: Vec<KeptFile>| files.into_iter().rev().map(move |file| (kind, file));
    Ok(of_kind("language", languages).chain(of_kind("package", packages)).collect())
}
