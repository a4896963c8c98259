//! Why something was not done, by who can do something about it.

use std::{fmt::Display, str::FromStr};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::server::problem;

/// Each has one line for people.
#[derive(Debug)]
pub enum Refusal {
    /// What was asked for makes no sense.
    Invalid(String),
    /// What it is about is not there.
    Unknown(String),
    /// It cannot be done as things are now.
    Conflict(String),
    /// It should have worked.
    Failed(String),
}

/// A name in a request.
pub(super) fn named<T: FromStr<Err: Display>>(name: &str) -> Result<T, Refusal> {
    name.parse().map_err(|error: T::Err| Refusal::Invalid(error.to_string()))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error) = match &self {
            Self::Invalid(error) => (StatusCode::BAD_REQUEST, error),
            Self::Unknown(error) => (StatusCode::NOT_FOUND, error),
            Self::Conflict(error) => (StatusCode::CONFLICT, error),
            Self::Failed(error) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        };
        problem(status, error)
    }
}
