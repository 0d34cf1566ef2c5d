"""The checks of deploy/test that no ready-made tool has. Run by deploy/test, in its virtual environment."""

import json
import pathlib
import re
import sys

import yaml

# Kinds that come with operators. Their schemas are in no registry that this uses, so only their form is checked.
CUSTOM = {"cert-manager.io/v1/Certificate", "monitoring.coreos.com/v1/ServiceMonitor"}


def documents(path):
    return [document for document in yaml.safe_load_all(pathlib.Path(path).read_text()) if document]


def split(rendered, builtin):
    """Writes what kubernetes-validate has schemas for to `builtin`; tells what it has not."""
    known = []
    for document in documents(rendered):
        kind = f"{document['apiVersion']}/{document['kind']}"
        if kind in CUSTOM:
            assert document["metadata"]["name"] and document["spec"], kind
            print(f"{rendered}: {kind} has no schema here")
        else:
            known.append(document)
    pathlib.Path(builtin).write_text(yaml.safe_dump_all(known))


def pod_security(rendered):
    """The restricted Pod Security Standard, as far as these pods could break it."""
    pods = 0
    for document in documents(rendered):
        template = (document.get("spec") or {}).get("template")
        if not template or "containers" not in template["spec"]:
            continue
        pods += 1
        spec = template["spec"]
        pod = spec.get("securityContext", {})
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(field), field
        for volume in spec.get("volumes", []):
            kind = (set(volume) - {"name"}).pop()
            assert kind in {"configMap", "csi", "downwardAPI", "emptyDir", "projected", "secret"}, volume
        names = [container["name"] for container in spec.get("initContainers", []) + spec["containers"]]
        assert "cognito-signout" in names, f"{rendered}: {document['metadata']['name']} has no sidecar: {names}"
        for container in spec.get("initContainers", []) + spec["containers"]:
            own = container.get("securityContext", {})
            both = {**pod, **own}
            where = f"{rendered}: {container['name']}"
            assert both.get("runAsNonRoot") is True, where
            assert both.get("runAsUser") != 0, where
            assert both.get("seccompProfile", {}).get("type") == "RuntimeDefault", where
            assert own.get("allowPrivilegeEscalation") is False, where
            assert own.get("capabilities", {}) == {"drop": ["ALL"]}, where
            assert own.get("readOnlyRootFilesystem") is True, where  # not in the standard; ours
            assert not any("hostPort" in port for port in container.get("ports", [])), where
    assert pods, f"{rendered} has no pod"


def environment(rendered, help_text):
    """Every COGNITO_SIGNOUT_ variable that is set exists: in the help of `serve`, or of the clients."""
    known = set(re.findall(r"COGNITO_SIGNOUT_[A-Z0-9_]+", pathlib.Path(help_text).read_text()))
    used = set(re.findall(r"COGNITO_SIGNOUT_[A-Z0-9_]+", pathlib.Path(rendered).read_text()))
    unknown = sorted(used - known)
    assert not unknown, f"{rendered} sets what the binary does not read: {', '.join(unknown)}"


def expressions(dashboard):
    found = []
    for panel in json.loads(pathlib.Path(dashboard).read_text())["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel.get("targets", [])]
    return found


def dashboard_rules(dashboard, rules):
    """The queries of the dashboard as rules, which promtool can parse."""
    groups = []
    for number, (title, expression) in enumerate(expressions(dashboard)):
        plain = expression.replace("$__rate_interval", "5m")
        plain = re.sub(r'=~"\$[a-z]+"', '=~".*"', plain)
        assert "$" not in plain, f"{title}: {plain}"
        groups.append({"record": f"dashboard:query:{number}", "expr": plain})
    pathlib.Path(rules).write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": groups}]}))


def runbook(rules, page):
    """Each alert has its section, and each section its alert."""
    alerts = []
    for group in documents(rules)[0]["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                name = rule["alert"]
                alerts.append(name)
                assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}", name
    sections = re.findall(r"^## (CognitoSignout\w+)$", pathlib.Path(page).read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alerts), set(sections) ^ set(alerts)
    print(f"{len(alerts)} alerts, each with its section")


# Served only once there is something to count, or by a flag.
LATER = ("cognito_signout_audit_", "cognito_signout_reloads_", "cognito_signout_spans_")


def metric_names(rules, dashboard, exposition):
    """What rules and dashboard ask for is what /metrics has."""
    served = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", pathlib.Path(exposition).read_text(), re.MULTILINE):
        served.add(name)
        if kind == "histogram":
            served |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    text = pathlib.Path(rules).read_text() + " ".join(query for _, query in expressions(dashboard))
    used = set(re.findall(r"\b(?:cognito_signout|process)_[a-z_]+\b", text))
    unknown = sorted(name for name in used - served if not name.startswith(LATER))
    assert not unknown, f"asked for and not served: {', '.join(unknown)}"
    print(f"{len(used)} metrics asked for, {len(used & served)} of them served by a sidecar that did two sign-outs")


if __name__ == "__main__":
    CHECKS = (split, pod_security, environment, dashboard_rules, runbook, metric_names)
    {check.__name__: check for check in CHECKS}[sys.argv[1]](*sys.argv[2:])
