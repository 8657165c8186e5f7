//! The four resources: where they are, which of their objects are asked for, and what an object says.

use std::sync::Arc;

use serde_json::Value;

use super::super::objects;
use super::super::read::{Kind, Object};
use super::request::escape;
use crate::cluster::Interner;

/// How many resources there are.
pub(super) const COUNT: usize = 4;

/// A resource to watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Resource {
    Services,
    EndpointSlices,
    /// The Node of this name.
    Node(Arc<str>),
    ServiceCidrs,
}

impl Resource {
    /// The resources' names, by [`index`](Resource::index).
    pub(super) const NAMES: [&'static str; COUNT] = ["services", "endpointslices", "nodes", "servicecidrs"];
    /// The bits of those without which nothing may be programmed.
    pub(super) const REQUIRED: u8 = 0b0111;

    pub(super) fn all(node: &Arc<str>) -> [Resource; COUNT] {
        [Resource::Services, Resource::EndpointSlices, Resource::Node(node.clone()), Resource::ServiceCidrs]
    }

    pub(super) fn index(&self) -> usize {
        match self {
            Resource::Services => 0,
            Resource::EndpointSlices => 1,
            Resource::Node(_) => 2,
            Resource::ServiceCidrs => 3,
        }
    }

    pub(super) fn bit(&self) -> u8 {
        1 << self.index()
    }

    pub(super) fn name(&self) -> &'static str {
        Resource::NAMES[self.index()]
    }

    /// The API group; the core group is empty.
    pub(super) fn group(&self) -> &'static str {
        match self {
            Resource::Services | Resource::Node(_) => "",
            Resource::EndpointSlices => "discovery.k8s.io",
            Resource::ServiceCidrs => "networking.k8s.io",
        }
    }

    pub(super) fn path(&self) -> &'static str {
        match self {
            Resource::Services => "/api/v1/services",
            Resource::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
            Resource::Node(_) => "/api/v1/nodes",
            Resource::ServiceCidrs => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }

    /// The selectors, percent-encoded; as kube-proxy's. Headless Services and their slices never travel.
    pub(super) fn selectors(&self) -> String {
        match self {
            Resource::Services => "&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
                                   &fieldSelector=spec.clusterIP%21%3DNone"
                .to_owned(),
            Resource::EndpointSlices => "&labelSelector=%21service.kubernetes.io%2Fheadless".to_owned(),
            Resource::Node(name) => format!("&fieldSelector=metadata.name%3D{}", escape(name)),
            Resource::ServiceCidrs => String::new(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Resource::Services => Kind::Service,
            Resource::EndpointSlices => Kind::EndpointSlice,
            Resource::Node(_) => Kind::Node,
            Resource::ServiceCidrs => Kind::ServiceCidr,
        }
    }

    /// What an object says; its neighbours are parsed on their own.
    pub(super) fn read(&self, raw: &str, names: &mut Interner) -> Object {
        self.kind().read(&mut serde_json::Deserializer::from_str(raw), || bare_metadata(raw), names)
    }
}

/// As much of the metadata as can be read of an object that cannot be read as a whole.
fn bare_metadata(raw: &str) -> objects::Metadata {
    let object: Value = serde_json::from_str(raw).unwrap_or_default();
    let word = |key: &str| object.pointer(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    objects::Metadata {
        name: word("/metadata/name"),
        namespace: word("/metadata/namespace"),
        resource_version: Some(word("/metadata/resourceVersion")),
        ..objects::Metadata::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(resource: Resource, raw: &str) -> Object {
        resource.read(raw, &mut Interner::default())
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let raw =
            r#"{"metadata":{"name":"web","namespace":"demo","resourceVersion":"7"},"spec":{"ports":5}}"#;
        let object = read(Resource::Services, raw);
        assert!(object.skipped && object.change.is_none());
        assert_eq!(object.id.to_string(), "Service demo/web");
        assert_eq!(object.version, "7");
        assert!(
            object.warnings[0].text.starts_with("Service demo/web is left out: spec.ports: "),
            "{object:?}"
        );
    }

    #[test]
    fn bad_metadata_hides_nothing_but_itself() {
        let raw = r#"{"metadata":{"name":"web","namespace":"demo","resourceVersion":"7","labels":"none"}}"#;
        let object = read(Resource::EndpointSlices, raw);
        assert_eq!(
            (object.id.to_string().as_str(), object.version.as_str()),
            ("EndpointSlice demo/web", "7")
        );
        assert!(object.skipped);
        // Not even an object.
        assert!(read(Resource::Node("n".into()), "[1]").skipped);
    }

    #[test]
    fn what_is_for_others_is_ignored_in_silence() {
        let raw = r#"{"metadata":{"name":"h","namespace":"demo"},"spec":{"clusterIP":"None"}}"#;
        let object = read(Resource::Services, raw);
        assert!(object.change.is_none() && object.warnings.is_empty() && !object.skipped);
    }
}
