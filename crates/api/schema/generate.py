#!/usr/bin/env python3
"""Writes fields.txt, the field tables of Kubernetes' built-in kinds, from the Go types that define them.

    generate.py --tag v0.36.3 SOURCES > fields.txt
    generate.py --tag v0.36.3 --check DEFINITIONS.json SOURCES

SOURCES holds git directories of kubernetes/{api,apimachinery,apiextensions-apiserver,kube-aggregator} in folders of
those names, or `kubernetes+NAME/repo`. Only facts are taken: names, types, tags and markers, no comments' text.
--check compares with an OpenAPI `_definitions.json` (PyPI kubernetes-validate) and prints what differs.

Format, one item a line (see schema.rs for the reader):
    P package openapi-prefix go-package     a package
    A package.Name type                     a named scalar, list or map
    M package.Name [atomic]                 a message; its fields follow:
    name tag type [flags…]                    name is the JSON name, `-` with tag 0 means none
    K group version package.Name            a kind
Flags: i inline, o omitempty, z omitzero, r required, L:type[:keys] list type, X:type map or struct type,
S:strategies patch strategy, G:key patch merge key, D:json default (always last, may hold spaces), g:Name the Go name.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

GROUPS = [  # (repo, folder, package, OpenAPI prefix, group)
    ("api", "core/v1", "core/v1", "io.k8s.api.core.v1", ""),
    ("api", "apps/v1", "apps/v1", "io.k8s.api.apps.v1", "apps"),
    ("api", "batch/v1", "batch/v1", "io.k8s.api.batch.v1", "batch"),
    ("api", "autoscaling/v1", "autoscaling/v1", "io.k8s.api.autoscaling.v1", "autoscaling"),
    ("api", "autoscaling/v2", "autoscaling/v2", "io.k8s.api.autoscaling.v2", "autoscaling"),
    ("api", "coordination/v1", "coordination/v1", "io.k8s.api.coordination.v1", "coordination.k8s.io"),
    ("api", "discovery/v1", "discovery/v1", "io.k8s.api.discovery.v1", "discovery.k8s.io"),
    ("api", "networking/v1", "networking/v1", "io.k8s.api.networking.v1", "networking.k8s.io"),
    ("api", "rbac/v1", "rbac/v1", "io.k8s.api.rbac.v1", "rbac.authorization.k8s.io"),
    ("api", "storage/v1", "storage/v1", "io.k8s.api.storage.v1", "storage.k8s.io"),
    ("api", "policy/v1", "policy/v1", "io.k8s.api.policy.v1", "policy"),
    ("api", "events/v1", "events/v1", "io.k8s.api.events.v1", "events.k8s.io"),
    ("api", "authentication/v1", "authentication/v1", "io.k8s.api.authentication.v1", "authentication.k8s.io"),
    ("api", "authorization/v1", "authorization/v1", "io.k8s.api.authorization.v1", "authorization.k8s.io"),
    ("api", "admissionregistration/v1", "admissionregistration/v1", "io.k8s.api.admissionregistration.v1",
     "admissionregistration.k8s.io"),
    ("api", "certificates/v1", "certificates/v1", "io.k8s.api.certificates.v1", "certificates.k8s.io"),
    ("api", "flowcontrol/v1", "flowcontrol/v1", "io.k8s.api.flowcontrol.v1", "flowcontrol.apiserver.k8s.io"),
    ("api", "node/v1", "node/v1", "io.k8s.api.node.v1", "node.k8s.io"),
    ("api", "scheduling/v1", "scheduling/v1", "io.k8s.api.scheduling.v1", "scheduling.k8s.io"),
    ("apiextensions-apiserver", "pkg/apis/apiextensions/v1", "apiextensions/v1",
     "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", "apiextensions.k8s.io"),
    ("kube-aggregator", "pkg/apis/apiregistration/v1", "apiregistration/v1",
     "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1", "apiregistration.k8s.io"),
    ("apimachinery", "pkg/apis/meta/v1", "meta/v1", "io.k8s.apimachinery.pkg.apis.meta.v1", "meta.k8s.io"),
]
SUPPORT = [("resource", "io.k8s.apimachinery.pkg.api.resource"), ("intstr", "io.k8s.apimachinery.pkg.util.intstr"),
           ("runtime", "io.k8s.apimachinery.pkg.runtime")]
IMPORTS = {
    "k8s.io/apimachinery/pkg/apis/meta/v1": "meta/v1",
    "k8s.io/apimachinery/pkg/api/resource": "resource",
    "k8s.io/apimachinery/pkg/util/intstr": "intstr",
    "k8s.io/apimachinery/pkg/runtime": "runtime",
    "k8s.io/apimachinery/pkg/types": "types",
}
# Types with their own encoding: the reader knows them by these words.
SPECIAL = {
    "meta/v1.Time": "Time", "meta/v1.MicroTime": "MicroTime", "meta/v1.Duration": "Duration",
    "meta/v1.FieldsV1": "FieldsV1", "resource.Quantity": "Quantity", "intstr.IntOrString": "IntOrString",
    "runtime.RawExtension": "RawExtension", "runtime.Object": "RawExtension", "types.UID": "types.UID",
    "types.NodeName": "types.NodeName",
    "apiextensions/v1.JSON": "JSON", "apiextensions/v1.JSONSchemaPropsOrArray": "OrArray",
    "apiextensions/v1.JSONSchemaPropsOrBool": "OrBool",
    "apiextensions/v1.JSONSchemaPropsOrStringArray": "OrStringArray",
}
SCALARS = {"string", "int", "int32", "int64", "uint8", "uint32", "uint64", "bool", "float32", "float64", "byte",
           "[]byte", "any"}
FIELD = re.compile(r"^\s+(?:(\w+)\s+)?([\w.\[\]*]+(?:\{\})?)(?:\s+`([^`]*)`)?\s*(?://.*)?$")


def git(repo, *args):
    return subprocess.run(["git", f"--git-dir={repo}", *args], check=True, capture_output=True, text=True).stdout


def find_repo(sources, name):
    for path in (sources / name / ".git", sources / name, sources / f"kubernetes+{name}" / "repo"):
        if path.exists() and (path / "objects").exists():
            return path
    sys.exit(f"no git directory of {name} in {sources}")


class Package:
    def __init__(self, name, prefix, group):
        self.name, self.prefix, self.group = name, prefix, group
        self.messages, self.aliases, self.order = {}, {}, []


def resolve(package, imports, text):
    """A Go type expression with package-qualified names."""
    if text.startswith("*"):
        return "*" + resolve(package, imports, text[1:])
    if text in ("[]byte", "[]uint8"):
        return "[]byte"
    if text.startswith("[]"):
        return "[]" + resolve(package, imports, text[2:])
    found = re.match(r"map\[([\w.]+)\](.*)", text)
    if found:
        return f"map[{resolve(package, imports, found[1])}]{resolve(package, imports, found[2])}"
    if text in SCALARS or text == "interface{}":
        return text
    if "." in text:
        alias, name = text.split(".")
        full = f"{imports[alias]}.{name}" if alias in imports else text
    else:
        full = f"{package.name}.{text}"
    return SPECIAL.get(full, full)


def tag_value(tags, key):
    found = re.search(rf'{key}:"([^"]*)"', tags)
    return found[1] if found else None


def read_imports(source):
    imports = {}
    for alias, path in re.findall(r'^(?:import)?\s+(\w+ )?"(k8s\.io/[^"]+)"', source, re.M):
        known = IMPORTS.get(path) or re.sub(r"^k8s\.io/api/", "", path)
        imports[alias.strip() or path.rsplit("/", 1)[-1]] = known
    return imports


def read_field(package, imports, line, markers):
    found = FIELD.match(line)
    if not found:
        return None
    name, text, tags = found[1], found[2], found[3] or ""
    parts = (tag_value(tags, "json") or "").split(",")
    if parts[0] == "-" or (tag_value(tags, "protobuf") == "-" and not parts[0]):
        return None
    proto = tag_value(tags, "protobuf")
    tag = int(proto.split(",")[1]) if proto and proto != "-" else 0
    kind = resolve(package, imports, text)
    inline = (name is None and not parts[0]) or "inline" in parts[1:]
    if kind == "meta/v1.TypeMeta" and inline:
        return "TypeMeta"
    go_name = name or text.rsplit(".", 1)[-1].lstrip("*")
    field = {"name": parts[0] or go_name, "tag": tag, "type": kind, "flags": []}
    flags = field["flags"]
    optional = "optional" in markers or "omitempty" in parts or "omitzero" in parts
    if inline:
        flags.append("i")
    if "omitempty" in parts:
        flags.append("o")
    if "omitzero" in parts:
        flags.append("z")
    if ("required" in markers or not optional) and not inline:
        flags.append("r")
    if "listType" in markers:
        keys = ",".join(markers.get("listMapKey", []))
        flags.append(f"L:{markers['listType'][0]}" + (f":{keys}" if keys else ""))
    for marker in ("mapType", "structType"):
        if marker in markers:
            flags.append(f"X:{markers[marker][0]}")
    if tag_value(tags, "patchStrategy"):
        flags.append(f"S:{tag_value(tags, 'patchStrategy')}")
    if tag_value(tags, "patchMergeKey"):
        flags.append(f"G:{tag_value(tags, 'patchMergeKey')}")
    if "default" in markers:
        value = markers["default"][0]
        if not value.startswith("ref("):
            flags.append("D:" + json.dumps(json.loads(value)))
    return field


def read_source(package, source):
    imports = read_imports(source)
    markers, message = {}, None
    for line in source.splitlines():
        if line.startswith("//go:build") and "kubernetes_protomessage" in line:
            return
        bare = line.strip()
        marker = re.match(r"//\s*\+([\w]+)(?:=(.*))?$", bare)
        if marker:
            markers.setdefault(marker[1], []).append(marker[2] or "")
            continue
        if bare.startswith("//"):
            continue
        if message is not None:
            if line.startswith("}"):
                message = None
            elif bare:
                field = read_field(package, imports, line, markers)
                if field == "TypeMeta":
                    package.messages[message]["kind"] = True
                elif field:
                    package.messages[message]["fields"].append(field)
            if bare:
                markers = {}
            continue
        struct = re.match(r"type (\w+) struct ?\{(\})?", line)
        named = re.match(r"(?:type |\t)(\w+) ([\w.\[\]*]+)\s*$", line)
        if struct and not struct[2]:
            message = struct[1]
            atomic = markers.get("structType", [""])[0] == "atomic" or markers.get("mapType", [""])[0] == "atomic"
            package.messages[message] = {"kind": False, "atomic": atomic, "fields": []}
            package.order.append(message)
        elif struct:
            package.messages[struct[1]] = {"kind": False, "atomic": False, "fields": []}
            package.order.append(struct[1])
        elif named and line.startswith("type ") and named[2] not in ("interface", "struct", "func"):
            package.aliases[named[1]] = resolve(package, imports, named[2])
        if bare:
            markers = {}


def load(sources, tag):
    packages = []
    for repo, folder, name, prefix, group in GROUPS:
        package = Package(name, prefix, group)
        path = find_repo(sources, repo)
        ref = tag if tag in git(path, "tag").split() else "HEAD"
        for file in git(path, "ls-tree", "--name-only", ref, f"{folder}/").split():
            base = file.rsplit("/", 1)[-1]
            if base.startswith("types") and base.endswith(".go") and "swagger" not in base and "_test" not in base:
                read_source(package, git(path, "show", f"{ref}:{file}"))
            elif name == "meta/v1" and base == "watch.go":
                read_source(package, git(path, "show", f"{ref}:{file}"))
        packages.append(package)
    return packages


def used_aliases(packages):
    text = " ".join(f["type"] for p in packages for m in p.messages.values() for f in m["fields"])
    text += " " + " ".join(a for p in packages for a in p.aliases.values())
    return set(re.findall(r"[\w/]+\.\w+", text))


def write(packages):
    print("# Written by generate.py from Go types of Kubernetes; see there for the format.")
    for package in packages:
        go_name = package.name.rsplit("/", 1)[-1]
        print("P", package.name, package.prefix, go_name)
    for name, prefix in SUPPORT:
        print("P", name, prefix, name)
    used = used_aliases(packages)
    print("A types.UID string\nA types.NodeName string")
    for package in packages:
        for name, kind in sorted(package.aliases.items()):
            full = f"{package.name}.{name}"
            if full in used and full not in SPECIAL:
                print("A", full, kind)
    for package in packages:
        for name in package.order:
            message, full = package.messages[name], f"{package.name}.{name}"
            if full in SPECIAL or name == "TypeMeta":
                continue
            print("M", full + (" atomic" if message["atomic"] else ""))
            for field in message["fields"]:
                print(field["name"], field["tag"], field["type"], *field["flags"])
    for package in packages:
        for name in package.order:
            if package.messages[name]["kind"]:
                version = package.name.rsplit("/", 1)[-1]
                print("K", package.group or "-", version, f"{package.name}.{name}")


def flatten(packages, full):
    by_name = {f"{p.name}.{n}": m for p in packages for n, m in p.messages.items()}
    out = {}
    for field in by_name[full]["fields"]:
        if "i" in field["flags"]:
            out.update(flatten(packages, field["type"].lstrip("*")))
        else:
            out[field["name"]] = field
    return out


def check(packages, path):
    raw = json.loads(path.read_text())
    definitions = raw.get("$defs") or raw.get("definitions") or raw
    if len(definitions) < 5:
        definitions = next(v for v in raw.values() if isinstance(v, dict))
    same = differ = 0
    for package in packages:
        for name in package.order:
            definition = definitions.get(f"{package.prefix}.{name}")
            if not definition or f"{package.name}.{name}" in SPECIAL:
                continue
            ours = flatten(packages, f"{package.name}.{name}")
            theirs = dict(definition.get("properties", {}))
            theirs.pop("apiVersion", None) if package.messages[name]["kind"] else None
            theirs.pop("kind", None) if package.messages[name]["kind"] else None
            for key in sorted(set(ours) | set(theirs)):
                problems = compare(ours.get(key), theirs.get(key), key in definition.get("required", []))
                differ += bool(problems)
                same += not problems
                for problem in problems:
                    print(f"{package.name}.{name}.{key}: {problem}")
    print(f"{same} fields agree, {differ} differ", file=sys.stderr)


def compare(ours, theirs, required):
    if ours is None:
        return ["not in the Go types"]
    if theirs is None:
        return ["not in the definitions"]
    flags = {f.split(":")[0]: f.partition(":")[2] for f in ours["flags"]}
    listing = theirs.get("x-kubernetes-list-type", "")
    if theirs.get("x-kubernetes-list-map-keys"):
        listing += ":" + ",".join(theirs["x-kubernetes-list-map-keys"])
    pairs = [("L", listing), ("S", theirs.get("x-kubernetes-patch-strategy", "")),
             ("G", theirs.get("x-kubernetes-patch-merge-key", ""))]
    problems = [f"{key}: {flags.get(key, '')!r} but {value!r}" for key, value in pairs if flags.get(key, "") != value]
    if required != ("r" in flags):
        problems.append(f"required: {'r' in flags} but {required}")
    return problems


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("sources", type=pathlib.Path)
    arguments.add_argument("--tag", default="v0.36.3")
    arguments.add_argument("--check", type=pathlib.Path)
    options = arguments.parse_args()
    packages = load(options.sources, options.tag)
    if options.check:
        check(packages, options.check)
    else:
        write(packages)


if __name__ == "__main__":
    main()
