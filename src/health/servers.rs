//! What the agent's own two servers answer.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hyper::StatusCode;

use super::Status;
use crate::http::{self, Route};
use crate::metrics::Metrics;

/// `--healthz-bind-address`: `/healthz`, `/livez`, `/readyz`.
pub fn health(status: Arc<Status>, metrics: Arc<Metrics>) -> Route {
    Arc::new(move |path| {
        let (response, counter) = match path {
            "/healthz" => (status.healthz(Instant::now(), SystemTime::now()), &metrics.healthz),
            "/livez" => (status.livez(Instant::now(), SystemTime::now()), &metrics.livez),
            "/readyz" => return status.readyz(),
            _ => return http::not_found(),
        };
        counter.with_label_values(&[response.status().as_str()]).inc();
        response
    })
}

/// `--metrics-bind-address`: `/metrics`, `/healthz`, `/proxyMode`, `/configz`.
pub fn metrics(metrics: Arc<Metrics>, proxy_mode: &'static str, configz: String) -> Route {
    Arc::new(move |path| match path {
        "/metrics" => match metrics.text() {
            Ok(text) => http::response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => http::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        // Only that the process answers; whether the rules are right is for the other server to say.
        "/healthz" => http::text(StatusCode::OK, "ok"),
        "/proxyMode" => http::text(StatusCode::OK, proxy_mode),
        // The configuration as it is in force, in the form of the file.
        "/configz" => http::json(StatusCode::OK, configz.clone()),
        _ => http::not_found(),
    })
}
