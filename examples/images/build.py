"""Makes OCI layouts from Debian packages: a program, the libraries it needs, a shell, a small entry point.

No maintainer script runs. The packages are the distribution's own, so a name such as `mysql:5.7` holds
MariaDB, and `mongo` is not built at all: the three-member database of the examples is `etcd`.
"""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile

LIBRARY_DIRS = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio",
                "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib", "usr/lib"]
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
LOADER = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}[ARCHITECTURE]

# Parts of Python's library that no example needs.
UNUSED = ["/__pycache__/", "/test/", "/dist-packages/", "/lib2to3/", "/idlelib/", "/tkinter/", "/ensurepip/", "/config-3"]

NGINX_CONF = """
user root;
worker_processes 1;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type text/plain;
    access_log /dev/stdout;
    client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    include /etc/nginx/conf.d/*.conf;
}
"""
NGINX_SITE = """server {
    listen @PORT@;
    server_name _;
    root /usr/share/nginx/html;
    add_header X-Pod $hostname always;
    index index.html;
}
"""
NGINX_START = """#!/bin/sh
# NGINX_PORT changes the port of the default site; a mounted conf.d is left alone.
if [ -w /etc/nginx/conf.d ] && [ ! -e /etc/nginx/conf.d/default.conf ]; then
    sed "s/@PORT@/${NGINX_PORT:-80}/" /etc/nginx/default.site >/etc/nginx/conf.d/default.conf
fi
exec "$@"
"""
# Answers every path with who it is; /healthz for probes; /api/ goes to BACKEND_URL when that is set.
APP_START = """#!/bin/sh
: "${PORT:=@PORT@}" "${VERSION:=@VERSION@}"
{
    for port in $(echo "$PORT" | tr , ' '); do
        echo 'server {'
        echo "    listen $port;"
        echo '    location = /healthz { access_log off; return 200 "ok\\n"; }'
        if [ -n "${BACKEND_URL:-}" ]; then
            echo '    location /api/ {'
            echo "        proxy_pass ${BACKEND_URL%/}/;"
            echo '        proxy_connect_timeout 2s;'
            echo '    }'
        fi
        printf '    location / { return 200 "app=@NAME@ version=%s host=$hostname ' "$VERSION"
        echo 'address=$server_addr:$server_port client=$remote_addr path=$request_uri\\n"; }'
        echo '}'
    done
} >/tmp/site.conf
sed 's,/etc/nginx/conf.d/\\*.conf,/tmp/site.conf,' /etc/nginx/nginx.conf >/tmp/nginx.conf
exec nginx -c /tmp/nginx.conf -g 'daemon off;'
"""
MYSQL_START = """#!/bin/sh
# The part of the official entry point that the examples use: MYSQL_ROOT_PASSWORD, MYSQL_DATABASE,
# MYSQL_USER, MYSQL_PASSWORD, MYSQL_ALLOW_EMPTY_PASSWORD.
set -eu
data=/var/lib/mysql
if [ -z "${MYSQL_ROOT_PASSWORD:-}${MYSQL_ALLOW_EMPTY_PASSWORD:-}" ] && [ ! -d $data/mysql ]; then
    echo 'error: database is uninitialized and password option is not specified' >&2
    echo '    You need to specify MYSQL_ROOT_PASSWORD or MYSQL_ALLOW_EMPTY_PASSWORD' >&2
    exit 1
fi
quote() { printf "'%s'" "$(printf %s "$1" | sed "s/\\\\\\\\/\\\\\\\\\\\\\\\\/g; s/'/''/g")"; }
mkdir -p $data /run/mysqld /tmp
if [ ! -d $data/mysql ]; then
    echo 'Initializing database files'
    share=/usr/share/mysql
    {
        echo 'create database mysql;'
        echo 'use mysql;'
        cat $share/mysql_system_tables.sql $share/mysql_performance_tables.sql \\
            $share/mysql_system_tables_data.sql $share/maria_add_gis_sp_bootstrap.sql
        cat $share/mysql_sys_schema.sql
    } | mariadbd --no-defaults --bootstrap --user=root --datadir=$data --lc-messages-dir=$share \\
        --innodb-log-file-size=8M --log-warnings=0 --enforce-storage-engine= >/tmp/bootstrap.log 2>&1 || {
            cat /tmp/bootstrap.log >&2; rm -rf $data/mysql; exit 1; }
fi
password=$(quote "${MYSQL_ROOT_PASSWORD:-}")
{
    # The bootstrap leaves accounts without password behind.
    echo "delete from mysql.global_priv where user = '' or (user = 'root' and host not in ('localhost', '%'));"
    echo 'flush privileges;'
    echo "create or replace user root@localhost identified by $password;"
    echo "grant all on *.* to root@localhost with grant option;"
    echo "create or replace user root@'%' identified by $password;"
    echo "grant all on *.* to root@'%' with grant option;"
    if [ -n "${MYSQL_DATABASE:-}" ]; then echo "create database if not exists \\`$MYSQL_DATABASE\\`;"; fi
    if [ -n "${MYSQL_USER:-}" ]; then
        echo "create or replace user $(quote "$MYSQL_USER")@'%' identified by $(quote "${MYSQL_PASSWORD:-}");"
        echo "grant all on \\`${MYSQL_DATABASE:-%}\\`.* to $(quote "$MYSQL_USER")@'%';"
    fi
    echo 'flush privileges;'
} >/tmp/init.sql
exec mariadbd --no-defaults --user=root --datadir=$data --lc-messages-dir=/usr/share/mysql --socket=/run/mysqld/mysqld.sock \\
    --init-file=/tmp/init.sql --bind-address=* --innodb-buffer-pool-size=32M --innodb-log-file-size=8M \\
    --performance-schema=off --skip-name-resolve "$@"
"""
INDEX = """<!DOCTYPE html>
<html><head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1><p>This page is served from a container of the examples.</p></body></html>
"""

NGINX = {"packages": ["nginx", "nginx-common"], "programs": ["usr/sbin/nginx"],
         "files": ["etc/nginx/mime.types"], "directories": ["var/log/nginx", "var/lib/nginx", "run", "etc/nginx/conf.d"]}


def app(name, version, port, tags):
    """A small web application: nginx that says who answers."""
    start = APP_START.replace("@NAME@", name).replace("@VERSION@", version).replace("@PORT@", str(port))
    return {**NGINX, "names": tags, "texts": {"etc/nginx/nginx.conf": NGINX_CONF, "start": start},
            "config": {"Entrypoint": ["/start"], "StopSignal": "SIGQUIT",
                       "ExposedPorts": {f"{port}/tcp": {}}}}


IMAGES = {
    "busybox": {"names": ["busybox:latest"], "config": {"Cmd": ["sh"]}},
    "nginx": {**NGINX, "names": ["nginx:latest", "nginx:stable"],
              "texts": {"etc/nginx/nginx.conf": NGINX_CONF, "etc/nginx/default.site": NGINX_SITE,
                        "usr/share/nginx/html/index.html": INDEX, "docker-entrypoint.sh": NGINX_START},
              "config": {"Entrypoint": ["/docker-entrypoint.sh"], "Cmd": ["nginx", "-g", "daemon off;"],
                         "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}}},
    "redis": {"names": ["redis:latest"], "packages": ["redis-tools"],
              "programs": ["usr/bin/redis-check-rdb", "usr/bin/redis-cli"],
              "links": {"usr/bin/redis-server": "redis-check-rdb"}, "directories": ["data"],
              "config": {"Cmd": ["redis-server", "--bind", "*", "-::*", "--protected-mode", "no", "--dir", "/data"],
                         "WorkingDir": "/data", "ExposedPorts": {"6379/tcp": {}}, "Volumes": {"/data": {}}}},
    "mysql": {"names": ["mysql:5.7"], "packages": ["mariadb-server-core", "mariadb-client-core", "mariadb-common"],
              "programs": ["usr/sbin/mariadbd", "usr/bin/mariadb"],
              "files": ["usr/share/mysql/english/errmsg.sys", "usr/share/mysql/charsets", "usr/share/mysql/mysql_system_tables.sql",
                        "usr/share/mysql/mysql_performance_tables.sql", "usr/share/mysql/mysql_system_tables_data.sql",
                        "usr/share/mysql/maria_add_gis_sp_bootstrap.sql", "usr/share/mysql/mysql_sys_schema.sql"],
              "links": {"usr/bin/mysql": "mariadb", "usr/sbin/mysqld": "mariadbd"},
              "directories": ["var/lib/mysql", "run/mysqld"], "texts": {"docker-entrypoint.sh": MYSQL_START},
              "config": {"Entrypoint": ["/docker-entrypoint.sh"], "ExposedPorts": {"3306/tcp": {}},
                         "Volumes": {"/var/lib/mysql": {}}}},
    "etcd": {"names": ["etcd:latest"], "packages": ["etcd-server", "etcd-client"],
             "programs": ["usr/bin/etcd", "usr/bin/etcdctl"], "directories": ["var/lib/etcd"],
             "config": {"Cmd": ["etcd"], "Env": ["ETCDCTL_API=3", "ETCD_DATA_DIR=/var/lib/etcd"],
                        "ExposedPorts": {"2379/tcp": {}, "2380/tcp": {}}}},
    "tools": {"names": ["tools:latest"], "packages": ["curl", "bind9-dnsutils", "redis-tools", "mariadb-client-core",
                                                      "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"],
              "programs": ["usr/bin/curl", "usr/bin/dig", "usr/bin/nslookup", "usr/bin/redis-cli", "usr/bin/mariadb",
                           "usr/bin/python3.11"],
              "files": ["usr/lib/python3.11", "etc/ssl/certs/ca-certificates.crt"],
              "links": {"usr/bin/python3": "python3.11", "usr/bin/mysql": "mariadb"},
              "config": {"Cmd": ["sleep", "infinity"]}},
    "backend-service": app("backend-service", "v1", 8080, ["mycompany/backend-service:latest"]),
    "web-app": app("web-app", "v1", 8080, ["mycompany/web-app:latest"]),
    "dashboard": app("dashboard", "v1", 8080, ["mycompany/dashboard:latest"]),
    "frontend": app("frontend", "v1", 8080, ["mycompany/frontend:latest"]),
    "my-backend-v1": app("my-backend", "v1", 8080, ["my-backend:v1"]),
    "my-backend-v2": app("my-backend", "v2", 9090, ["my-backend:v2"]),
    "my-api": app("my-api", "v1", 9377, ["my-api:latest"]),
}


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def dependencies(packages):
    """The packages and the libraries below them, by name."""
    text = run("apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
               "--no-breaks", "--no-replaces", "--no-enhances", "--no-pre-depends", *packages)
    found = {line.strip() for line in text.splitlines() if line and line[0] not in " |<"}
    return sorted(set(packages) | {name for name in found if name.startswith("lib") or name.endswith("-libs")})


def unpacked(packages, cache):
    """Directories with the packages' files. The machine's own libraries are used where it has them."""
    roots = []
    installed = set(run("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n").split("\n"))
    wanted = [name for name in dependencies(packages) if f"{name} installed" not in installed]
    missing = [name for name in wanted if not os.path.isdir(f"{cache}/{name}")]
    if missing:
        work = f"{cache}/download"
        os.makedirs(work, exist_ok=True)
        subprocess.run(["chown", "_apt", work], check=False)
        run("apt-get", "download", "-q", *missing, cwd=work)
        for file in os.listdir(work):
            name = file.split("_")[0]
            run("dpkg-deb", "-x", f"{work}/{file}", f"{cache}/{name}.new")
            os.rename(f"{cache}/{name}.new", f"{cache}/{name}")
        shutil.rmtree(work)
    for name in wanted:
        roots.append(f"{cache}/{name}")
    return roots + ["/"]


def needed(path):
    """Libraries that an ELF file names (DT_NEEDED)."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] != b"\x7fELF" or data[4] != 2:
        return []
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    loads, dynamic = [], None
    for index in range(count):
        kind, _, start, address, _, length = struct.unpack_from("<IIQQQQ", data, offset + index * size)
        if kind == 1:
            loads.append((address, start, length))
        elif kind == 2:
            dynamic = (start, length)
    if not dynamic:
        return []
    entries = [struct.unpack_from("<qQ", data, dynamic[0] + at) for at in range(0, dynamic[1], 16)]
    table = next(value for tag, value in entries if tag == 5)
    base = next(start + table - address for address, start, length in loads if address <= table < address + length)
    return [data[base + value:data.index(b"\0", base + value)].decode() for tag, value in entries if tag == 1]


def locate(roots, path):
    for root in roots:
        full = os.path.join(root, path)
        if os.path.lexists(full):
            # An absolute link in a package is meant from its own root.
            if os.path.islink(full) and os.readlink(full).startswith("/"):
                return locate(roots, os.readlink(full).lstrip("/"))
            return os.path.realpath(full)
    raise SystemExit(f"build.sh: no {path} in {', '.join(roots)}")


def library(roots, name):
    for root in roots:
        for directory in LIBRARY_DIRS:
            full = os.path.join(root, directory, name)
            if os.path.exists(full):
                return os.path.realpath(full)
    raise SystemExit(f"build.sh: no library {name} in {', '.join(roots)}")


class Layer:
    """A tar archive that comes out the same from the same files."""

    def __init__(self):
        self.entries = {}

    def add(self, path, data=None, link=None, mode=0o755, directory=False):
        path = path.strip("/")
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.add(parent, directory=True)
        info = tarfile.TarInfo(path)
        info.mode = mode
        if directory:
            info.type = tarfile.DIRTYPE
        elif link is not None:
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, link, 0o777
        else:
            info.size = len(data)
        self.entries[path] = (info, data)

    def file(self, path, source):
        with open(source, "rb") as file:
            self.add(path, file.read(), mode=os.stat(source).st_mode & 0o777)

    def tree(self, path, source):
        if os.path.isfile(source):
            return self.file(path, source)
        for directory, _, files in os.walk(source):
            for name in sorted(files):
                full = os.path.join(directory, name)
                if os.path.isfile(full) and not any(part in full for part in UNUSED):
                    self.file(os.path.join(path, os.path.relpath(full, source)), full)

    def program(self, roots, path, source):
        """A program or library with everything that it loads."""
        self.file(path, source)
        for name in needed(source):
            target = "lib/" + name
            if target not in self.entries and target != LOADER:
                found = library(roots, name)
                self.program(roots, target, found)
        if LOADER not in self.entries and needed(source):
            self.file(LOADER, os.path.realpath("/" + LOADER))

    def bytes(self):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(self.entries):
                info, data = self.entries[path]
                archive.addfile(info, io.BytesIO(data) if data is not None else None)
        return out.getvalue()


def base(layer):
    """A shell and the files that libc reads."""
    layer.file("bin/busybox", "/bin/busybox")
    for applet in run("/bin/busybox", "--list").split():
        if applet != "busybox":
            layer.add(f"bin/{applet}", link="busybox")
    layer.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", mode=0o644)
    layer.add("etc/group", b"root:x:0:\nnogroup:x:65534:\n", mode=0o644)
    layer.add("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n", mode=0o644)
    layer.add("etc/hosts", b"127.0.0.1 localhost\n", mode=0o644)  # outside of pods
    layer.add("tmp", directory=True, mode=0o1777)
    for directory in ["root", "run", "var", "proc", "sys", "dev"]:
        layer.add(directory, directory=True)


def build(name, recipe, output, cache):
    layer = Layer()
    base(layer)
    roots = unpacked(recipe["packages"], cache) if "packages" in recipe else ["/"]
    for program in recipe.get("programs", []):
        layer.program(roots, program, locate(roots, program))
    for path in recipe.get("files", []):
        locate(roots, path)  # says what is missing
        for root in reversed(roots):
            if os.path.exists(os.path.join(root, path)):
                layer.tree(path, os.path.join(root, path))
    if name == "tools":  # python's own extension modules load libraries too
        modules = [path for path in layer.entries if "/lib-dynload/" in path]
        for wanted in sorted({one for path in modules for one in needed(locate(roots, path))}):
            if f"lib/{wanted}" not in layer.entries:
                layer.program(roots, f"lib/{wanted}", library(roots, wanted))
    for directory in recipe.get("directories", []):
        layer.add(directory, directory=True)
    for path, target in recipe.get("links", {}).items():
        layer.add(path, link=target)
    for path, text in recipe.get("texts", {}).items():
        layer.add(path, text.encode(), mode=0o755 if text.startswith("#!") else 0o644)
    write_layout(output, recipe, layer.bytes())


def write_layout(output, recipe, layer):
    shutil.rmtree(output, ignore_errors=True)
    os.makedirs(f"{output}/blobs/sha256")

    def blob(data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{output}/blobs/sha256/{digest}", "wb") as file:
            file.write(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def document(value, media_type):
        return blob(json.dumps(value, sort_keys=True).encode(), media_type)

    packed = blob(layer, "application/vnd.oci.image.layer.v1.tar")
    config = dict(recipe["config"])
    config["Env"] = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] + config.get("Env", [])
    config = {"architecture": ARCHITECTURE, "os": "linux", "created": "1970-01-01T00:00:00Z", "config": config,
              "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]}}
    config = document(config, "application/vnd.oci.image.config.v1+json")
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = document({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [packed]}, kind)
    manifests = [{**manifest, "platform": {"os": "linux", "architecture": ARCHITECTURE},
                  "annotations": {"org.opencontainers.image.ref.name": name}} for name in recipe["names"]]
    with open(f"{output}/oci-layout", "w") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)
    with open(f"{output}/index.json", "w") as file:
        json.dump({"schemaVersion": 2, "manifests": manifests}, file)


def main():
    if len(sys.argv) < 2:
        raise SystemExit("usage: build.sh DIRECTORY [NAME...]")
    top, chosen = os.path.abspath(sys.argv[1]), sys.argv[2:] or list(IMAGES)
    unknown = [name for name in chosen if name not in IMAGES]
    if unknown:
        raise SystemExit(f"build.sh: no image {unknown[0]!r}; there are {', '.join(IMAGES)}")
    if not os.path.exists("/bin/busybox"):
        raise SystemExit("build.sh: /bin/busybox is missing: apt-get install busybox-static")
    cache = f"{top}/.packages"
    os.makedirs(cache, exist_ok=True)
    with open(__file__, "rb") as file:
        own = file.read()
    for name in chosen:
        packages = IMAGES[name].get("packages", [])
        versions = run("apt-cache", "policy", *packages) if packages else ""
        candidates = "".join(line for line in versions.splitlines() if "Candidate" in line)
        stamp, mark = f"{top}/{name}/.stamp", hashlib.sha256(own + candidates.encode()).hexdigest()
        if os.path.exists(stamp) and open(stamp).read() == mark:
            continue
        build(name, IMAGES[name], f"{top}/{name}", cache)
        with open(stamp, "w") as file:
            file.write(mark)
        size = sum(os.path.getsize(f"{top}/{name}/blobs/sha256/{blob}") for blob in os.listdir(f"{top}/{name}/blobs/sha256"))
        print(f"{name}: {', '.join(IMAGES[name]['names'])} ({size / 1e6:.1f} MB)", flush=True)


main()
