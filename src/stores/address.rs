//! Addresses of objects: which store, which object in it, and what messages call it.

use crate::failure::{Failure, Result};

/// How a store is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Amazon's protocol, which many stores speak.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
    /// A web server that answers range requests.
    Http,
}

#[cfg(feature = "network")]
impl Scheme {
    /// The environment variables that say who asks and where the store is.
    pub(crate) fn settings(self) -> &'static str {
        match self {
            Scheme::S3 => {
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL (AWS_SKIP_SIGNATURE=true for a public bucket)"
            }
            Scheme::Gs => "GOOGLE_SERVICE_ACCOUNT (GOOGLE_SKIP_SIGNATURE=true for a public bucket)",
            Scheme::Az => {
                "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (AZURE_SKIP_SIGNATURE=true for a public container)"
            }
            Scheme::Http => "the address: it has to be open, or to carry its own signature",
        }
    }
}

/// The address of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// How its store is spoken to.
    pub scheme: Scheme,
    /// The bucket or container; of a web server, its scheme, host and port, with the query of the address.
    pub store: String,
    /// The object's name in it; of a web server, the path as it stands in the address.
    pub key: String,
    /// What messages call it: the address without its query, in which signatures stand.
    pub name: String,
}

/// The addresses that are read.
const KNOWN: &str = "give s3://, gs://, az://, http:// or https://";

/// A path without the parts that lead nowhere: a list whose images lie in its own folder may say `./`.
fn without_dots(path: &str) -> String {
    let parts = path.split('/').filter(|part| *part != ".");
    parts.collect::<Vec<_>>().join("/")
}

/// The part of a text before `://`, where that is the scheme of an address.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let is_scheme = scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    is_scheme.then_some((scheme, rest))
}

/// Whether a text is an address and not a path.
pub fn is_address(text: &str) -> bool {
    scheme_of(text).is_some()
}

/// An address as messages show it: without the query of a web address, in which signatures stand.
pub fn shown(text: &str) -> &str {
    match scheme_of(text) {
        Some(("http" | "https", _)) => text.split('?').next().unwrap_or(text),
        _ => text,
    }
}

impl Address {
    /// Understands an address.
    ///
    /// # Errors
    /// [`InvalidInput`](std::io::ErrorKind::InvalidInput) for a scheme that is not read here, or where a part is missing.
    pub fn parse(text: &str) -> Result<Address> {
        let Some((scheme, rest)) = scheme_of(text) else {
            return Err(Failure::address("it is no address", KNOWN));
        };
        let name = shown(text).to_owned();
        let scheme = match scheme {
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "az" => Scheme::Az,
            "http" | "https" => return Address::of_web(scheme, rest, name),
            other => {
                let problem = format!("addresses of {other} are not read");
                return Err(Failure::address(problem, KNOWN));
            }
        };
        let (store, key) = rest.split_once('/').unwrap_or((rest, ""));
        if store.is_empty() || key.is_empty() {
            return Err(Failure::address(
                "it names no object",
                "give a bucket and the name of an object in it, as in s3://bucket/train/shard-000.tar",
            ));
        }
        Ok(Address {
            scheme,
            store: store.to_owned(),
            key: without_dots(key),
            name,
        })
    }

    fn of_web(scheme: &str, rest: &str, name: String) -> Result<Address> {
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, format!("?{query}")),
            None => (rest, String::new()),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if let Some((_, host)) = host.rsplit_once('@') {
            return Err(Failure::address(
                "it holds a password, and addresses are kept with a run",
                format!("give {scheme}://{host}/{path}, open to be read or with a signature"),
            ));
        }
        if host.is_empty() || path.is_empty() {
            return Err(Failure::address(
                "it names no file",
                "give a host and the path of a file on it, as in https://host/train/shard-000.tar",
            ));
        }
        Ok(Address {
            scheme: Scheme::Http,
            store: format!("{scheme}://{host}/{query}"),
            key: without_dots(path),
            name,
        })
    }
}
