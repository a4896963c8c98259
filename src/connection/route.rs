//! Which project's session a connection gets: decided once, by the first of these that names one.
//!
//! 1. the login name, `user+project`;
//! 2. the variable `PODSPAWN_PROJECT` of the channel that is the first to need the container;
//! 3. what `podspawn connect` has announced ([`super::announcement`]).
//!
//! A session is made while the client is still opening its channel, so the decision cannot always wait for the second. It
//! does where the server has projects and neither of the others names one. A channel whose variable comes too late, or on a
//! connection that is another project's already, is refused rather than run in the wrong place.

use crate::names::{NameError, ProjectName};

/// The variable that names a project.
pub(super) const VARIABLE: &str = "PODSPAWN_PROJECT";

/// Why a channel cannot have what its variable asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RouteError {
    #[error("{VARIABLE}: {0}")]
    Name(#[from] NameError),
    #[error("{VARIABLE} names project {0}, but this server has no projects")]
    NoProjects(ProjectName),
    #[error("{VARIABLE} names project {asked}, but this connection is already {}", in_session(.has.as_ref()))]
    Elsewhere { asked: ProjectName, has: Option<ProjectName> },
}

fn in_session(project: Option<&ProjectName>) -> String {
    project.map_or_else(|| "in a session without a project".to_owned(), |project| format!("in project {project}"))
}

/// The decision, once for each connection.
#[derive(Debug)]
pub(super) struct Route {
    /// Whether the server has projects, so that a variable can name one.
    projects: bool,
    /// By the login name, which is the user's last word.
    named: Option<ProjectName>,
    announced: Option<ProjectName>,
    decision: Decision,
}

#[derive(Debug)]
enum Decision {
    Open,
    Taken(Option<ProjectName>),
}

impl Route {
    pub(super) fn new(projects: bool) -> Self {
        Self { projects, named: None, announced: None, decision: Decision::Open }
    }

    /// The client is logged in by this name, which the supervisor has found valid.
    pub(super) fn log_in(&mut self, login: &str, announced: Option<ProjectName>) {
        self.named = login.split_once('+').and_then(|(_, project)| project.parse().ok());
        self.announced = announced;
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_known(&self) -> bool {
        !self.projects || self.named.is_some() || self.announced.is_some()
    }

    /// Decides for something that needs the container and cannot say for which project. Returns whether it is the first, so
    /// that the session has to be asked for.
    pub(super) fn enter(&mut self) -> bool {
        if let Decision::Taken(_) = self.decision {
            return false;
        }
        self.decision = Decision::Taken(self.named.clone().or_else(|| self.announced.clone()));
        true
    }

    /// Decides for a channel whose variable asks for this. Returns the same.
    pub(super) fn enter_as(&mut self, asked: Option<Asked>) -> Result<bool, RouteError> {
        let Some(asked) = asked.filter(|_| self.named.is_none()).transpose()? else { return Ok(self.enter()) };
        match &self.decision {
            Decision::Open => {
                self.decision = Decision::Taken(Some(asked));
                Ok(true)
            }
            Decision::Taken(Some(project)) if *project == asked => Ok(false),
            Decision::Taken(None) if !self.projects => Err(RouteError::NoProjects(asked)),
            Decision::Taken(has) => Err(RouteError::Elsewhere { asked, has: has.clone() }),
        }
    }

    /// The project that was decided for.
    pub(super) fn project(&self) -> Option<ProjectName> {
        match &self.decision {
            Decision::Open => None,
            Decision::Taken(project) => project.clone(),
        }
    }
}

/// What a channel's variable says.
pub(super) type Asked = Result<ProjectName, NameError>;

/// What the variable's value asks for; nothing if it is empty. A host name of the project is its name too.
pub(super) fn asked(value: &str) -> Option<Asked> {
    (!value.is_empty()).then(|| value.strip_suffix(".pod").unwrap_or(value).parse())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged_in(projects: bool, login: &str, announced: Option<&str>) -> Route {
        let mut route = Route::new(projects);
        route.log_in(login, announced.map(|name| name.parse().unwrap()));
        route
    }

    /// Whether it is known at login, and the project that a first channel gets, `-` for none, or why it gets nothing.
    fn first(projects: bool, login: &str, variable: &str, announced: Option<&str>) -> (bool, String) {
        let mut route = logged_in(projects, login, announced);
        let known = route.is_known();
        if known {
            assert!(route.enter());
        }
        let shown = match route.enter_as(asked(variable)) {
            Ok(first) => {
                assert!(first != known);
                route.project().map_or("-".to_owned(), String::from)
            }
            Err(error) => error.to_string(),
        };
        (known, shown)
    }

    #[test]
    fn the_login_name_goes_before_the_variable_and_that_before_nothing() {
        let table = [
            (true, "ada", "", None, (false, "-")),
            (true, "ada", "web", None, (false, "web")),
            (true, "ada", "web.pod", None, (false, "web")),
            (true, "ada", "", Some("api"), (true, "api")),
            (true, "ada", "api.pod", Some("api"), (true, "api")),
            (true, "ada+web", "", None, (true, "web")),
            (true, "ada+web", "api", Some("db"), (true, "web")),
            (true, "ada+web", "../..", None, (true, "web")),
            (false, "ada", "", None, (true, "-")),
            (false, "ada+web", "", None, (true, "web")),
        ];
        for (projects, login, variable, announced, (at_once, project)) in table {
            let got = first(projects, login, variable, announced);
            assert_eq!(got, (at_once, project.to_owned()), "{projects} {login} {variable:?} {announced:?}");
        }
    }

    #[test]
    fn a_variable_that_cannot_be_followed_is_told() {
        let table = [
            (
                true,
                "web",
                Some("api"),
                "PODSPAWN_PROJECT names project web, but this connection is already in project api",
            ),
            (false, "web", None, "PODSPAWN_PROJECT names project web, but this server has no projects"),
            (true, "../x", None, "PODSPAWN_PROJECT: project name \"../x\" is not valid"),
            (true, ".pod", None, "PODSPAWN_PROJECT: project name \"\" is not valid"),
            (true, "a..b.pod", None, "PODSPAWN_PROJECT: project name \"a..b\" is not valid"),
        ];
        for (projects, variable, announced, expected) in table {
            let (_, got) = first(projects, "ada", variable, announced);
            assert!(got.starts_with(expected), "{variable}: {got}");
        }
    }

    #[test]
    fn a_connection_stays_where_its_first_channel_was() {
        let mut route = logged_in(true, "ada", None);
        assert_eq!(route.enter_as(asked("web")), Ok(true));
        assert_eq!(route.enter_as(asked("web")), Ok(false));
        assert_eq!(route.enter_as(None), Ok(false));
        assert!(!route.enter());
        assert!(matches!(route.enter_as(asked("api")), Err(RouteError::Elsewhere { .. })));
        assert_eq!(route.project().map(String::from), Some("web".to_owned()));
    }

    #[test]
    fn a_variable_that_is_not_valid_leaves_the_decision_to_the_next_channel() {
        let mut route = logged_in(true, "ada", None);
        assert!(matches!(route.enter_as(asked("No")), Err(RouteError::Name(_))));
        assert_eq!(route.enter_as(asked("web")), Ok(true));
    }

    #[test]
    fn what_cannot_say_for_which_project_it_is_decides_for_none() {
        let mut route = logged_in(true, "ada", None);
        assert!(route.enter() && !route.enter());
        let error = route.enter_as(asked("web")).unwrap_err().to_string();
        assert!(error.ends_with("this connection is already in a session without a project"), "{error}");
    }
}
