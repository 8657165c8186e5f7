//! What one object says, wherever it was read.

use serde::Deserializer;
use serde::de::DeserializeOwned;

use super::convert::{self, Invalid, Outcome};
use super::{Id, objects};
use crate::cluster::{Change, Interner};

/// The kinds that a proxy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

/// What an object says.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) id: Id,
    /// `metadata.uid`.
    pub(super) uid: String,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    /// The value; `None` where there is none for this proxy.
    pub(super) change: Option<Change>,
    /// What is left out: parts of the object, or where `skipped` all of it.
    pub(super) warnings: Vec<Warning>,
    pub(super) skipped: bool,
}

/// What is wrong with an object.
#[derive(Debug, Hash)]
pub(super) struct Warning {
    pub(super) text: String,
    /// An address is of a family that the Service does not have.
    pub(super) wrong_family: bool,
}

impl Kind {
    /// Reads an object. One that is not what its kind says is left out alone; `bare` then gives as much of its
    /// metadata as there is.
    pub(super) fn read<'de, D: Deserializer<'de>>(
        self,
        from: D,
        bare: impl FnOnce() -> objects::Metadata,
        names: &mut Interner,
    ) -> Object {
        match self {
            Kind::Service => self.typed(from, bare, names, |o: &objects::Service, names| {
                convert::service(o, names).map(|s| Change::Service(s.name.clone(), Some(s)))
            }),
            Kind::EndpointSlice => self.typed(from, bare, names, |o: &objects::EndpointSlice, names| {
                convert::endpoint_slice(o, names).map(|s| Change::EndpointSlice(s.name.clone(), Some(s)))
            }),
            Kind::Node => self.typed(from, bare, names, |o: &objects::Node, names| {
                convert::node(o, names).map(|n| Change::Node(n.name.clone(), Some(n)))
            }),
            Kind::ServiceCidr => self.typed(from, bare, names, |o: &objects::ServiceCidr, names| {
                convert::service_cidr(o, names).map(|c| Change::ServiceCidr(c.name.clone(), Some(c)))
            }),
        }
    }

    fn typed<'de, D: Deserializer<'de>, T: DeserializeOwned + objects::Object>(
        self,
        from: D,
        bare: impl FnOnce() -> objects::Metadata,
        names: &mut Interner,
        convert: impl FnOnce(&T, &mut Interner) -> Outcome<Change>,
    ) -> Object {
        let object: T = match serde_path_to_error::deserialize(from) {
            Ok(object) => object,
            Err(error) => {
                let metadata = bare();
                let id = self.id(&metadata, names);
                let text = format!("{id} is left out: {}: {}", error.path().clone(), error.into_inner());
                let (uid, version) =
                    (metadata.uid.unwrap_or_default(), metadata.resource_version.unwrap_or_default());
                let warnings = vec![Warning { text, wrong_family: false }];
                return Object { id, uid, version, change: None, warnings, skipped: true };
            }
        };
        let id = self.id(object.metadata(), names);
        let version = object.metadata().resource_version.clone().unwrap_or_default();
        let uid = object.metadata().uid.clone().unwrap_or_default();
        let warn = |w: &Invalid| Warning { text: format!("{id}: {w}"), wrong_family: w.wrong_family };
        let (change, warnings, skipped) = match convert(&object, names) {
            Outcome::Value(change, warnings) => (Some(change), warnings.iter().map(warn).collect(), false),
            Outcome::Ignored => (None, vec![], false),
            Outcome::Invalid(invalid) => {
                let text = format!("{id} is left out: {invalid}");
                (None, vec![Warning { text, wrong_family: false }], true)
            }
        };
        Object { id, uid, version, change, warnings, skipped }
    }

    fn id(self, metadata: &objects::Metadata, names: &mut Interner) -> Id {
        match self {
            Kind::Service => Id::Service(convert::name(metadata, names)),
            Kind::EndpointSlice => Id::EndpointSlice(convert::name(metadata, names)),
            Kind::Node => Id::Node(names.intern(&metadata.name)),
            Kind::ServiceCidr => Id::ServiceCidr(names.intern(&metadata.name)),
        }
    }
}
