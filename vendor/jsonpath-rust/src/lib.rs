//! As much of the crate jsonpath-rust as the Kubernetes client calls: it picks the token out of what a command printed,
//! for the authentication provider `gcp` of a kubeconfig, with paths such as `$.credential.access_token`. The whole
//! crate brings parsers of JSONPath and of regular expressions for that, a twentieth of the binary.

use serde_json::Value;

/// Queries of a JSON value.
pub trait JsonPath {
    /// The values at a path of member names, `$.a.b`: one or none. An error names what is not supported.
    fn query(&self, path: &str) -> Result<Vec<&Value>, String>;
}

impl JsonPath for Value {
    fn query(&self, path: &str) -> Result<Vec<&Value>, String> {
        let members = path.strip_prefix("$.").ok_or("the path does not begin with `$.`")?;
        let mut value = Some(self);
        for name in members.split('.') {
            let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
            if name.is_empty() || !name.chars().all(plain) {
                return Err(format!("only names of members are supported, not {name:?}"));
            }
            value = value.and_then(|value| value.get(name));
        }
        Ok(value.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::JsonPath;

    #[test]
    fn members_are_found_and_all_else_is_named() {
        let json: serde_json::Value =
            serde_json::from_str(r#"{"credential": {"access_token": "t", "x": [1]}}"#).expect("JSON");
        assert_eq!(json.query("$.credential.access_token").expect("a path")[0], "t");
        assert!(json.query("$.credential.token.more").expect("a path").is_empty());
        for path in ["credential", "$.credential.x[0]", "$..x", "$.", "$.credential[?(@.a)]"] {
            assert!(json.query(path).is_err(), "{path}");
        }
    }
}
