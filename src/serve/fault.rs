//! What is said of a request that is not answered: a status, and OpenAI's error form.

use hyper::StatusCode;
use serde_json::{Value as Json, json};

use keel_base::error::Error;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub(crate) status: StatusCode,
    message: String,
    /// The field of the request that is at fault, such as `messages[0].content`.
    param: Option<String>,
    code: Option<&'static str>,
}

impl Fault {
    fn new(status: StatusCode, message: impl Into<String>, code: Option<&'static str>) -> Fault {
        Fault {
            status,
            message: message.into(),
            param: None,
            code,
        }
    }

    /// A request that cannot be understood or granted, for its field `param`.
    pub(crate) fn request(param: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault {
            param: Some(param.into()),
            ..Fault::new(StatusCode::BAD_REQUEST, message, None)
        }
    }

    /// As [`Fault::request`], of a kind that programs tell by `code`.
    pub(crate) fn coded(param: &str, code: &'static str, message: impl Into<String>) -> Fault {
        Fault {
            code: Some(code),
            ..Fault::request(param, message)
        }
    }

    /// Of a setting that is known and not offered, or not known.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Fault {
        Fault::coded(param, "unsupported_parameter", message)
    }

    /// A body that is no JSON.
    pub(crate) fn json(problem: impl std::fmt::Display) -> Fault {
        let message = format!("the request's body is no JSON ({problem}); send one JSON object");
        Fault::new(StatusCode::BAD_REQUEST, message, Some("invalid_json"))
    }

    /// Another media type than JSON, which pages of other addresses could send without being asked.
    pub(crate) fn media_type(found: &str) -> Fault {
        let message = format!("the content type is {found:?}; send application/json");
        Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message, None)
    }

    /// A body beyond the limit.
    pub(crate) fn too_large(limit: usize) -> Fault {
        let message = format!(
            "the request is larger than {} MiB; send smaller images, or raise --max-request",
            limit >> 20
        );
        Fault::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            message,
            Some("request_too_large"),
        )
    }

    /// A body that does not come.
    pub(crate) fn too_slow() -> Fault {
        let message = "the request's body did not arrive in time; send it again";
        Fault::new(StatusCode::REQUEST_TIMEOUT, message, Some("timeout"))
    }

    /// A body that breaks off.
    pub(crate) fn cut_off() -> Fault {
        let message = "the request's body broke off; send it again";
        Fault::new(StatusCode::BAD_REQUEST, message, None)
    }

    /// A model that is not the one that is served.
    pub(crate) fn model(found: &str, served: &str) -> Fault {
        let message =
            format!("there is no model {found:?} here; this server answers as {served:?}");
        Fault {
            param: Some("model".to_owned()),
            ..Fault::new(StatusCode::NOT_FOUND, message, Some("model_not_found"))
        }
    }

    /// A path that leads nowhere.
    pub(crate) fn path(method: &hyper::Method, path: &str) -> Fault {
        let message = format!(
            "there is nothing at {method} {path}; there are POST /v1/chat/completions, GET /v1/models and the page at /"
        );
        Fault::new(StatusCode::NOT_FOUND, message, Some("unknown_url"))
    }

    /// A known path with a method that it does not have.
    pub(crate) fn method(method: &hyper::Method, path: &str, allowed: &str) -> Fault {
        let message = format!("{path} is asked by {allowed}, not by {method}");
        Fault::new(
            StatusCode::METHOD_NOT_ALLOWED,
            message,
            Some("method_not_supported"),
        )
    }

    /// More waits than may wait.
    pub(crate) fn queue(most: usize) -> Fault {
        let message = format!("{most} requests wait already; ask again later, or raise --queue");
        Fault::new(
            StatusCode::TOO_MANY_REQUESTS,
            message,
            Some("rate_limit_exceeded"),
        )
    }

    /// Bodies of more bytes are being read than memory is kept for.
    pub(crate) fn bodies() -> Fault {
        let message = "too many large requests at once; ask again later";
        Fault::new(
            StatusCode::TOO_MANY_REQUESTS,
            message,
            Some("rate_limit_exceeded"),
        )
    }

    /// More connections than are served.
    pub(crate) fn connections(most: usize) -> Fault {
        let message = format!("{most} connections are open already; connect again later");
        Fault::new(StatusCode::SERVICE_UNAVAILABLE, message, Some("overloaded"))
    }

    /// The server ends.
    pub(crate) fn ending() -> Fault {
        let message = "the server is ending and takes no further requests";
        Fault::new(StatusCode::SERVICE_UNAVAILABLE, message, Some("overloaded"))
    }

    /// Something failed that the request is not to blame for.
    pub(crate) fn server(problem: impl std::fmt::Display) -> Fault {
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR, problem.to_string(), None)
    }

    /// What a run said of a conversation: a mistake of whoever asks, or a failure of this server.
    pub(crate) fn of_run(problem: Error) -> Fault {
        match problem {
            Error::Setting { .. } => {
                Fault::coded("messages", "context_length_exceeded", problem.to_string())
            }
            Error::Content { .. } => Fault::request("messages", problem.to_string()),
            problem => Fault::server(problem),
        }
    }

    /// The status it is answered by.
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// OpenAI's form.
    pub fn to_json(&self) -> Json {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}
