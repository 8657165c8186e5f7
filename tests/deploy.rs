//! What operators install: the Helm chart, the plain manifests that are rendered from it, and what both say to the agent.
//! Needs python3 with venv: `.ci/chart` has Helm's library and the Kubernetes schemas from there.

#[path = "deploy/chart.rs"]
mod chart;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/monitoring.rs"]
mod monitoring;
