//! Images over the control API: the store is the one that the commands use too, and its locks keep each from the other's way.

use std::{
    io::{self, BufWriter, Write},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{control::Control, jobs};
use crate::{
    api::{
        Refusal,
        bodies::{BodyReader, Written, written},
        images::Images,
        types::{self, CachedFile, ImageDetails, ImageId, Job, Pruned},
    },
    errors::chain,
    image::{ConfigChanges, Image, ImageError, ImportOptions, KEEP_BUILT, Reference},
    session::{Context, in_use, kept_for_builds},
};

/// What is written of an export at once.
const CHUNK: usize = 64 << 10;

impl Images for Control {
    async fn images(&self, all: bool) -> Result<Vec<types::Image>, Refusal> {
        self.with_context(move |context| {
            let (images, mut damaged) = context.store.list()?;
            let mut found: Vec<_> = images.iter().map(types::Image::of).collect();
            if all {
                let (built, more) = context.store.list_built()?;
                found.extend(built.iter().map(types::Image::of_step));
                damaged.extend(more);
            }
            for error in damaged {
                tracing::warn!("an image is left out: {}", chain(error));
            }
            Ok(found)
        })
        .await
        .map_err(refusal)
    }

    async fn image(&self, reference: Reference) -> Result<ImageDetails, Refusal> {
        self.with_context(move |context| {
            let image = find(context, &reference)?;
            let contents = context.store.contents(&image).map_err(refusal)?;
            ImageDetails::of(&image, &contents).map_err(|error| Refusal::Failed(error.to_string()))
        })
        .await
    }

    async fn remove_image(&self, reference: Reference) -> Result<(), Refusal> {
        self.with_context(move |context| context.store.remove(&reference, || in_use(&context.state)))
            .await
            .map_err(refusal)
    }

    async fn prune(&self, all: bool) -> Result<Pruned, Refusal> {
        let unused_for = if all { Duration::ZERO } else { KEEP_BUILT };
        let pruned = self.with_context(move |context| context.store.prune(unused_for, || in_use(&context.state))).await;
        pruned.map(|pruned| Pruned { layers: pruned.layers, bytes: pruned.bytes }).map_err(refusal)
    }

    async fn cached(&self) -> Result<Vec<CachedFile>, Refusal> {
        let config = self.0.config();
        let kept = self.with_context(move |_| kept_for_builds(&config)).await;
        let kept = kept.map_err(|error| Refusal::Failed(format!("cannot read what is kept for builds: {error}")))?;
        Ok(kept.iter().map(|(kind, file)| CachedFile::of(kind, file)).collect())
    }

    fn pull(&self, reference: Reference, told: mpsc::Sender<Job<ImageId>>) {
        let supervisor = self.0.clone();
        tokio::spawn(jobs::run(told, move |client| {
            Ok(of(supervisor.sessions.context().store.pull(&reference, client)?))
        }));
    }

    async fn push(&self, reference: Reference, to: Reference, told: mpsc::Sender<Job<ImageId>>) -> Result<(), Refusal> {
        if !to.can_be_pushed_to() {
            return Err(refusal(ImageError::NoDestination(to.to_string())));
        }
        let image = self.with_context(move |context| find(context, &reference)).await?;
        let supervisor = self.0.clone();
        tokio::spawn(jobs::run(told, move |client| {
            let pushed = supervisor.sessions.context().store.push(&image, &to, client)?;
            Ok(ImageId { digest: pushed.to_string() })
        }));
        Ok(())
    }

    async fn import(&self, tar: BodyReader, reference: Reference, options: ImportOptions) -> Result<ImageId, Refusal> {
        let import = move |context: &Context| context.store.import(tar, "the request's body", &reference, &options);
        self.with_context(import).await.map(of).map_err(|error| match error {
            // What came was no tar, or not all of it.
            ImageError::Layer { .. } | ImageError::TooLarge(_) => Refusal::Invalid(chain(error)),
            other => refusal(other),
        })
    }

    async fn export(&self, reference: Reference) -> Result<Written, Refusal> {
        let image = self.with_context(move |context| find(context, &reference)).await?;
        let supervisor = self.0.clone();
        let (to, body) = written();
        tokio::task::spawn_blocking(move || {
            let mut to = BufWriter::with_capacity(CHUNK, to);
            let exported = supervisor.sessions.context().store.export(&image, &mut to).map_err(chain);
            let exported = exported.and_then(|()| to.flush().map_err(chain));
            if let Err(error) = exported {
                tracing::debug!("export of {}: {error}", image.reference);
                // Without what is buffered, which is not the end.
                to.into_parts().0.fail(io::Error::other(error));
            }
        });
        Ok(body)
    }

    async fn configure(
        &self,
        reference: Reference,
        changes: ConfigChanges,
        tag: Reference,
    ) -> Result<ImageId, Refusal> {
        self.with_context(move |context| {
            let image = find(context, &reference)?;
            context.store.configure(&image, &changes, &tag).map(of).map_err(refusal)
        })
        .await
    }
}

fn of(image: Image) -> ImageId {
    ImageId { digest: image.id.to_string() }
}

fn find(context: &Context, reference: &Reference) -> Result<Image, Refusal> {
    let found = context.store.lookup(reference).map_err(refusal)?;
    found.ok_or_else(|| refusal(ImageError::NotFound(format!("image {reference}"))))
}

fn refusal(error: ImageError) -> Refusal {
    match error {
        ImageError::NotFound(_) => Refusal::Unknown(chain(error)),
        ImageError::InUse { .. } => Refusal::Conflict(chain(error)),
        ImageError::NoDestination(_) => Refusal::Invalid(chain(error)),
        other => Refusal::Failed(chain(other)),
    }
}
