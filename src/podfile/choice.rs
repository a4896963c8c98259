//! Fields that are one of a few words.

use serde::Serialize;

use super::value::ValueError;

/// Declares a choice between words, the default first.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $first:ident = $first_word:literal, $($variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
        pub enum $name {
            #[default]
            #[serde(rename = $first_word)]
            $first,
            $(#[serde(rename = $word)] $variant,)*
        }

        impl $name {
            pub(super) fn parse(word: &str) -> Result<Self, ValueError> {
                match word {
                    $first_word => Ok(Self::$first),
                    $($word => Ok(Self::$variant),)*
                    _ => Err(ValueError::Word { value: word.to_owned(), known: &[$first_word, $($word,)*] }),
                }
            }
        }
    };
}

words! {
    /// What happens to a session when its last connection closes.
    Mode {
        GracePeriod = "grace-period",
        DestroyOnDisconnect = "destroy-on-disconnect",
        Persistent = "persistent",
    }
}

words! {
    /// How a directory of the host is to be had inside, where a machine is made from one.
    Mount {
        Bind = "bind",
        Copy = "copy",
        None = "none",
    }
}

words! {
    /// Which port of the host an exposed port is to be had at.
    PortStrategy {
        Auto = "auto",
        Manual = "manual",
        Expose = "expose",
    }
}

words! {
    /// Whether a service that ends is started again.
    Restart {
        No = "no",
        OnFailure = "on-failure",
    }
}

words! {
    /// Whom a session runs as, if not as its user.
    User {
        Root = "root",
    }
}
