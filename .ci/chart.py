"""render VALUES.yaml...  prints, as JSON, for each file of values (and "" for none given) what the chart's templates become
lint VALUES.yaml...    says what Helm finds wrong with the chart; exit status 1 if anything
validate               reads YAML documents from stdin and names those that a version of Kubernetes would not take
"""
import json
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).parent.parent / "deploy/chart"
# The oldest that the chart allows, one in the middle, the newest that is known.
VERSIONS = ["1.29", "1.33", "1.37"]
# Kinds of the Prometheus operator have no schema here.
WITHOUT_SCHEMA = "monitoring.coreos.com/"


def read(path):
    return yaml.safe_load(Path(path).read_text()) or {}


def render(paths):
    from helm_python import Chart

    chart = Chart.load(CHART)
    renderings = {}
    for path in paths:
        files = chart.render(read(path), name="sluice", namespace="kube-system")
        renderings[path] = {Path(name).name: text for name, text in files.items()}
    json.dump(renderings, sys.stdout)


def lint(paths):
    from helm_python import chart

    found = []
    for path in paths:
        report = chart.lint(CHART, read(path), strict=True, namespace="kube-system")
        found += [f"{path}: {m['path']}: {m['error']}" for m in report["messages"] if m["severity"] > 1]
    return "\n".join(found)


def validate(_):
    import kubernetes_validate

    found, count = [], 0
    for document in yaml.safe_load_all(sys.stdin):
        if document is None or document["apiVersion"].startswith(WITHOUT_SCHEMA):
            continue
        for version in VERSIONS:
            count += 1
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                where = "/".join(map(str, getattr(error, "path", [])))
                found.append(f"{document['kind']} {document['metadata']['name']}, {version}: {where}: {error.message}")
    print(count)
    return "\n".join(found)


if __name__ == "__main__":
    sys.exit({"render": render, "lint": lint, "validate": validate}[sys.argv[1]](sys.argv[2:]) or None)
