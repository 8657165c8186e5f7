//! Authorization as RBAC does it: what no rule of a role grants is refused.

use std::collections::BTreeSet;

use hyper::Method;
use serde_json::Value;

/// API group, resource and verb.
pub type Right = (String, String, String);

/// A role, and what became of the requests of whoever has it.
#[derive(Clone, Debug)]
pub struct Authorizer {
    /// What the role grants.
    pub granted: BTreeSet<Right>,
    /// Rights of it that were used.
    pub used: BTreeSet<Right>,
    /// Requests that were refused.
    pub refused: Vec<String>,
}

impl Authorizer {
    /// Of a ClusterRole. Wildcards and names of resources grant nothing here.
    pub fn new(role: &Value) -> Authorizer {
        let words = |rule: &Value, field: &str| -> Vec<String> {
            let words = rule[field].as_array().expect("a list").iter();
            words.map(|word| word.as_str().expect("a text").to_owned()).collect()
        };
        let mut granted = BTreeSet::new();
        for rule in role["rules"].as_array().expect("rules") {
            for group in words(rule, "apiGroups") {
                for resource in words(rule, "resources") {
                    let verbs = words(rule, "verbs").into_iter();
                    granted.extend(verbs.map(|verb| (group.clone(), resource.clone(), verb)));
                }
            }
        }
        Authorizer { granted, used: BTreeSet::new(), refused: Vec::new() }
    }

    /// Whether a request is granted; keeps account.
    pub fn allows(&mut self, method: &Method, path: &str, watch: bool) -> bool {
        let right = right(method, path, watch);
        match right.filter(|right| self.granted.contains(right)) {
            Some(right) => {
                self.used.insert(right);
                true
            }
            None => {
                self.refused.push(format!("{method} {path}{}", if watch { " (watch)" } else { "" }));
                false
            }
        }
    }
}

/// What a request needs; `None` where that is no resource.
fn right(method: &Method, path: &str, watch: bool) -> Option<Right> {
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match words[..] {
        ["api", "v1", ref rest @ ..] => ("", rest),
        ["apis", group, _, ref rest @ ..] => (group, rest),
        _ => return None,
    };
    let (resource, name) = match rest {
        ["namespaces", _, resource, name @ ..] | [resource, name @ ..] => (resource, name.first()),
        [] => return None,
    };
    let verb = match (method, name) {
        (&Method::GET, _) if watch => "watch",
        (&Method::GET, None) => "list",
        (&Method::GET, Some(_)) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) => "delete",
        _ => return None,
    };
    Some((group.to_owned(), (*resource).to_owned(), verb.to_owned()))
}
