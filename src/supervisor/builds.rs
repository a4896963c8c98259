//! Builds that are asked for over the control API.

use tokio::sync::mpsc;

use super::{
    control::Control,
    jobs::{self, Failure, Telling},
};
use crate::{
    api::{
        Refusal,
        builds::Builds,
        types::{BuildRequest, ImageId, Job},
    },
    errors::chain,
    image::{Image, Progress, Reference},
    names::ProjectName,
    podfile::{self, BuildPlan, Document, External, Format, MAX_FILE, Origin, Source, SourceError},
    project::Remotes,
    session::CreateError,
};

type Told = mpsc::Sender<Job<ImageId>>;

/// What to build an image of.
enum Of {
    Plan(BuildPlan),
    /// The text of one.
    Podfile(String),
}

impl Builds for Control {
    async fn build(&self, request: BuildRequest, told: Told) -> Result<(), Refusal> {
        let BuildRequest { plan, podfile, project, tag } = request;
        let tag = tag.as_deref().map(name).transpose()?;
        let of = match (plan, podfile, project) {
            (Some(plan), None, None) => Of::Plan(plan),
            (None, Some(text), None) if text.len() as u64 > MAX_FILE => {
                return Err(Refusal::Invalid("the podfile is larger than 1 MiB".to_owned()));
            }
            (None, Some(text), None) => Of::Podfile(text),
            (None, None, Some(name)) => Of::Plan(self.plan_of(name).await?),
            _ => return Err(Refusal::Invalid("there has to be one of plan, podfile and project".to_owned())),
        };
        let control = self.clone();
        tokio::spawn(async move {
            let built = tokio::select! {
                built = control.built(of, tag, Telling(told.clone())) => built,
                () = told.closed() => return,
            };
            jobs::end(told, built.map(|image| ImageId { digest: image.id.to_string() })).await;
        });
        Ok(())
    }
}

/// A name for an image that is made here.
fn name(text: &str) -> Result<Reference, Refusal> {
    match text.parse::<Reference>() {
        Ok(tag @ Reference::Registry(_)) => Ok(tag),
        Ok(other) => {
            Err(Refusal::Invalid(format!("{other} says where an image is, and cannot be the name of a new one")))
        }
        Err(error) => Err(Refusal::Invalid(error.to_string())),
    }
}

impl Control {
    async fn plan_of(&self, name: ProjectName) -> Result<BuildPlan, Refusal> {
        let config = self.0.config();
        let found =
            self.with_context(move |context| context.podfiles.of(&config.projects(), &name).map(|it| (name, it)));
        match found.await {
            Ok((_, Some((_, podfile)))) => Ok(BuildPlan::of(&podfile)),
            Ok((name, None)) => Err(Refusal::Unknown(format!("there is no project {name}"))),
            Err(error) => Err(Refusal::Failed(chain(error))),
        }
    }

    async fn built(&self, of: Of, tag: Option<Reference>, client: Telling<ImageId>) -> Result<Image, Failure> {
        let config = self.0.config();
        let plan = match of {
            Of::Plan(plan) => plan,
            Of::Podfile(text) => {
                let private_hosts = config.podfile.private_hosts.clone();
                let resolved = self.with_context(move |_| resolve(text, private_hosts)).await.map_err(invalid)?;
                resolved.warnings.iter().for_each(|warning| client.line(&format!("warning: {warning}")));
                BuildPlan::of(&resolved.podfile)
            }
        };
        let sessions = &self.0.sessions;
        let image = sessions.build(&plan, &config, |line| client.line(line)).await.map_err(failure)?;
        match tag {
            None => Ok(image),
            Some(tag) => sessions.tag(image, tag).await.map_err(failure),
        }
    }
}

fn failure(error: CreateError) -> Failure {
    let output = match &error {
        CreateError::Build(failure) => failure.output.clone(),
        _ => Vec::new(),
    };
    Failure { error: chain(error), output }
}

fn invalid(invalid: podfile::Invalid) -> Failure {
    let output = invalid.errors.iter().map(ToString::to_string).collect();
    Failure { error: "the Podfile is not valid".to_owned(), output }
}

/// Reads a Podfile that came alone: there are no files that it could extend. Blocks if it extends one of another server.
fn resolve(text: String, private_hosts: Vec<String>) -> Result<podfile::Resolved, podfile::Invalid> {
    let name = "podfile.yaml".to_owned();
    let origin = Origin::Remote("the request".to_owned());
    podfile::resolve(&Document { name, origin, text, format: Format::Podfile }, &NoFiles { private_hosts })
}

/// Fetches bases of other servers.
struct NoFiles {
    private_hosts: Vec<String>,
}

impl Source for NoFiles {
    fn read(&self, base: &External, _from: &Origin) -> Result<Document, SourceError> {
        match base {
            External::Path(path) => Err(SourceError::Refused {
                what: path.display().to_string(),
                why: "the Podfile came without other files",
            }),
            External::Remote(remote) => {
                Remotes::Fetched { keep: None, private_hosts: self.private_hosts.clone() }.read(remote)
            }
        }
    }
}
