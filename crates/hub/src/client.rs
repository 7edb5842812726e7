//! The hub as the environment describes it, and what its answers mean.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use navicache_weights::hub_cache::{self, HubCache, variable};
use ureq::http::Response;
use ureq::{Agent, Body, Proxy};

use crate::error::{Error, Result, hub_error};

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Times that a connection may break without a byte of progress.
pub(crate) const ATTEMPTS: u32 = 5;
/// Silence after which a connection counts as broken.
const SILENCE: Duration = Duration::from_secs(60);

/// The hub as the environment describes it: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Address without a slash at its end.
    pub endpoint: String,
    /// Folder of all repositories.
    pub cache: HubCache,
    /// Access token, for repositories that are not open to all.
    pub token: Option<String>,
    /// Whether nothing may be downloaded.
    pub offline: bool,
    /// What is waited after a connection broke, times the number of breaks.
    pub pause: Duration,
}

impl Hub {
    /// Reads the environment.
    pub fn from_env() -> Result<Self> {
        let home = hub_cache::home()?;
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| fs::read_to_string(token_file).ok());
        Ok(Hub {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string()).trim_end_matches('/').to_string(),
            cache: HubCache::from_env()?,
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE")
                .is_some_and(|v| !["0", "false", "no", "off"].contains(&v.to_lowercase().as_str())),
            pause: Duration::from_secs(1),
        })
    }

    /// A request that is put again when the connection breaks.
    pub(crate) fn get_patiently(&self, agent: &Agent, repository: &str, url: &str) -> Result<Response<Body>> {
        for attempt in 1.. {
            match self.authorized(agent.get(url)).call() {
                Ok(response) if response.status().as_u16() == 200 => return Ok(response),
                Ok(response) if response.status().as_u16() < 500 || attempt == ATTEMPTS => {
                    return Err(self.refused(repository, url, &response));
                }
                Err(error) if attempt == ATTEMPTS => return Err(unreachable(url, &error)),
                _ => std::thread::sleep(self.pause * attempt),
            }
        }
        Err(hub_error(url, "no answer"))
    }

    pub(crate) fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// What an answer means that is not the one that was hoped for.
    pub(crate) fn refused(&self, repository: &str, url: &str, response: &Response<Body>) -> Error {
        let status = response.status().as_u16();
        let page = format!("{}/{repository}", self.endpoint);
        let reason = match (status, &self.token) {
            (401, None) => format!(
                "the hub asks who you are (401): there is no such repository, or it is not open to all; log in at {page}, accept its \
                 terms, and set HF_TOKEN to a token of yours"
            ),
            (401, Some(_)) => "the hub does not know this token (401); make a new one and set HF_TOKEN".to_string(),
            (403, _) => format!("access is not granted (403); accept the terms at {page}, and set HF_TOKEN"),
            (404, _) => "there is no such file or repository (404); `navicache models` lists known names".to_string(),
            (429, _) => "the hub asks for patience (429); try again later, or set HF_TOKEN".to_string(),
            _ => format!("the hub answers with status {status}; try again later"),
        };
        hub_error(url, &reason)
    }
}

pub(crate) fn agent(endpoint: &str) -> Agent {
    // A proxy leads out of the machine; a hub on this one is not there.
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let is_local = ["localhost", "127.", "[::1]"].iter().any(|local| host.starts_with(local));
    let proxy = if is_local { None } else { Proxy::try_from_env() };
    Agent::config_builder()
        .proxy(proxy)
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .user_agent(concat!("navicache/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

pub(crate) fn unreachable(url: &str, error: &ureq::Error) -> Error {
    hub_error(url, &format!("cannot be reached ({error}); is there a network, and is HF_ENDPOINT right?"))
}
