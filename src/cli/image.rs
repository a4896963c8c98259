//! `image ...`

use std::{
    fs::{self, File},
    io::{self, BufWriter, IsTerminal, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde::Serialize;

use super::{Session, interrupt::interruptible, pull, table};
use crate::{
    api::types::{self, CachedFile, ImageDetails},
    errors::chain,
    image::{ConfigChanges, Image, ImportOptions, KEEP_BUILT, KeptFile, Reference, Store},
    session::{images_in_use, kept_for_builds},
};

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images
    Ls {
        /// Also list what steps of Podfiles have led to
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print all that is known of an image, as JSON
    Inspect {
        /// Name of the image
        #[arg(value_name = "REF")]
        reference: String,
    },
    /// Forget an image; prune then removes what no other image needs
    Rm {
        /// Names of the images
        #[arg(value_name = "REF", required = true)]
        references: Vec<String>,
    },
    /// Remove what was built and not used for a week, and layers that no image needs
    Prune {
        /// Remove everything that was built and is not used by a session now
        #[arg(long)]
        all: bool,
    },
    /// List what is kept for builds: archives of languages, and packages that builds have downloaded
    Cache {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make an image out of a tar of a root file system
    Import {
        /// The tar, perhaps compressed with gzip or zstd; - reads standard input
        file: PathBuf,
        /// What to call the image
        #[arg(value_name = "REF")]
        reference: String,
        /// A word of the image's default command; repeat for more
        #[arg(long, value_name = "WORD")]
        cmd: Vec<String>,
        /// An environment variable of the image
        #[arg(long, value_name = "NAME=VALUE")]
        env: Vec<String>,
    },
    /// Change what an image's configuration says: the program, its user, environment, ports and volumes
    Config {
        /// Name of the image
        #[arg(value_name = "REF")]
        reference: String,
        /// Fields of `config` in the OCI image spec, as a JSON object; - reads standard input
        file: PathBuf,
        /// What to call the image; without it the new one takes the name of the old one
        #[arg(long, value_name = "REF")]
        tag: Option<String>,
    },
    /// Write an image's root file system as a tar
    Export {
        /// Name of the image
        #[arg(value_name = "REF")]
        reference: String,
        /// Where to; - writes to standard output
        file: PathBuf,
    },
}

impl ImageCommand {
    pub fn run(&self, session: &Session<'_>) -> anyhow::Result<()> {
        let store = pull::open(session)?;
        match self {
            Self::Ls { all, json } => list(&store, *all, *json),
            Self::Inspect { reference } => inspect(&store, reference),
            Self::Rm { references } => {
                for reference in references {
                    store.remove(&reference.parse()?, || images_in_use(session.config))?;
                }
                Ok(())
            }
            Self::Prune { all } => {
                let unused_for = if *all { Duration::ZERO } else { KEEP_BUILT };
                let pruned = store.prune(unused_for, || images_in_use(session.config))?;
                if !session.quiet {
                    writeln!(io::stderr(), "{} layers removed, {}", pruned.layers, size(pruned.bytes))?;
                }
                Ok(())
            }
            Self::Cache { json } => list_cache(session, *json),
            Self::Import { file, reference, cmd, env } => {
                let reference: Reference = reference.parse()?;
                let options = ImportOptions { command: cmd.clone(), env: env.clone() };
                options.check()?;
                let (stream, name): (Box<dyn Read>, _) = if file.as_os_str() == "-" {
                    (Box::new(io::stdin()), "standard input".to_owned())
                } else {
                    let name = file.display().to_string();
                    (Box::new(File::open(file).with_context(|| format!("cannot open {name}"))?), name)
                };
                let image = interruptible(&store, || store.import(stream, &name, &reference, &options))?;
                writeln!(io::stdout(), "{}", image.id)?;
                Ok(())
            }
            Self::Config { reference, file, tag } => {
                let image = find(&store, reference)?;
                let name: Reference = tag.as_ref().unwrap_or(reference).parse()?;
                let image = store.configure(&image, &changes(file)?, &name)?;
                writeln!(io::stdout(), "{}", image.id)?;
                Ok(())
            }
            Self::Export { reference, file } => {
                let image = find(&store, reference)?;
                if file.as_os_str() == "-" {
                    if io::stdout().is_terminal() {
                        bail!("a tar on a terminal helps nobody; redirect it");
                    }
                    return Ok(store.export(&image, BufWriter::new(io::stdout().lock()))?);
                }
                export_to(&store, &image, file)
            }
        }
    }
}

/// The changes that a file says, or standard input.
fn changes(file: &Path) -> anyhow::Result<ConfigChanges> {
    let name = if file.as_os_str() == "-" { "standard input".to_owned() } else { file.display().to_string() };
    let text = if file.as_os_str() == "-" { io::read_to_string(io::stdin()) } else { fs::read_to_string(file) };
    let text = text.with_context(|| format!("cannot read {name}"))?;
    let changes: ConfigChanges = serde_json::from_str(&text).with_context(|| format!("{name} is not valid"))?;
    changes.check().with_context(|| format!("{name} is not valid"))?;
    Ok(changes)
}

/// Writes a file that is there completely or not at all. What is no file, such as a pipe, is written to.
fn export_to(store: &Store, image: &Image, file: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", file.display());
    if fs::metadata(file).is_ok_and(|meta| !meta.is_file()) {
        let to = File::options().write(true).open(file).with_context(failed)?;
        return Ok(store.export(image, BufWriter::new(to))?);
    }
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let usual = fs::Permissions::from_mode(0o666);
    let to =
        tempfile::Builder::new().prefix(".export-").permissions(usual).tempfile_in(directory).with_context(failed)?;
    store.export(image, BufWriter::new(to.as_file()))?;
    to.persist(file).with_context(failed)?;
    Ok(())
}

fn find(store: &Store, reference: &str) -> anyhow::Result<Image> {
    let reference: Reference = reference.parse()?;
    let found = store.lookup(&reference)?;
    found.with_context(|| format!("there is no image {reference}; fetch it with: podspawn pull {reference}"))
}

fn list(store: &Store, all: bool, json: bool) -> anyhow::Result<()> {
    let (images, mut damaged) = store.list()?;
    // With what was done to have it.
    let mut images: Vec<(Image, Option<String>)> = images.into_iter().map(|image| (image, None)).collect();
    if all {
        let (built, more) = store.list_built()?;
        images.extend(built.into_iter().map(|built| (built.image, Some(built.step))));
        damaged.extend(more);
    }
    for error in damaged {
        writeln!(io::stderr(), "podspawn: {}", chain(error))?;
    }
    if json {
        let shown =
            |(image, step): &(Image, Option<String>)| types::Image { step: step.clone(), ..types::Image::of(image) };
        return print_json(&images.iter().map(shown).collect::<Vec<_>>());
    }
    let now = SystemTime::now();
    let row = |(image, step): &(Image, Option<String>)| {
        let age = now.duration_since(image.pulled_at).unwrap_or_default();
        let name = match step {
            Some(step) => format!("{} ({step})", image.reference),
            None => image.reference.clone(),
        };
        [name, image.id.short().to_owned(), size(image.bytes), table::duration(age.as_secs())]
    };
    let rows: Vec<_> = images.iter().map(row).collect();
    Ok(table::print(["REFERENCE", "DIGEST", "SIZE", "AGE"], &rows)?)
}

fn list_cache(session: &Session<'_>, json: bool) -> anyhow::Result<()> {
    let unreadable = || format!("cannot read what is kept in {}", session.config.paths.state_dir.display());
    let kept = kept_for_builds(session.config).with_context(unreadable)?;
    if json {
        return print_json(&kept.iter().map(|(kind, file)| CachedFile::of(kind, file)).collect::<Vec<_>>());
    }
    let now = SystemTime::now();
    let row = |(kind, file): &(&str, KeptFile)| {
        let age = now.duration_since(file.used).unwrap_or_default();
        [(*kind).to_owned(), file.digest.short().to_owned(), size(file.bytes), table::duration(age.as_secs())]
    };
    let rows: Vec<_> = kept.iter().map(row).collect();
    Ok(table::print(["KIND", "DIGEST", "SIZE", "USED"], &rows)?)
}

fn inspect(store: &Store, reference: &str) -> anyhow::Result<()> {
    let image = find(store, reference)?;
    print_json(&ImageDetails::of(&image, &store.contents(&image)?)?)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}

/// `12.3 MB`
fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
