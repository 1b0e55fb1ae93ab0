//! Every folder of `examples/`, applied as it stands, keeps what it promises: real servers, reached by real clients.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const IMAGES: &[&str] = &[
    "nginx",
    "web-app",
    "dashboard",
    "backend-service",
    "frontend",
    "mysql",
    "redis",
    "etcd",
    "my-api",
    "my-backend-v1",
    "my-backend-v2",
    "tools",
];

/// A pod beside the example's, with the clients that a user would bring.
const VISITOR: &str = "{apiVersion: v1, kind: Pod, metadata: {name: visitor}, spec: {terminationGracePeriodSeconds: 0,
  containers: [{name: tools, image: 'tools:latest', imagePullPolicy: IfNotPresent}]}}";

/// What an example promises, looked at.
type Check = fn(&Lab) -> Result<()>;

#[test]
fn the_examples_keep_their_promises() -> Result<()> {
    let lab = Lab::up(BINARY, 3, IMAGES)?;
    let examples: &[(&str, Check)] = &[
        // The slow starters first: they come up while the others are looked at.
        ("shop", shop),
        ("database", database),
        ("web-app", web_app),
        ("nodeport", nodeport),
        ("named-port", named_port),
        ("two-versions", two_versions),
        ("multi-port", multi_port),
        ("api-access", api_access),
    ];
    for (name, _) in examples {
        lab.kubectl(&["create", "namespace", name])?;
        enter(&lab, name)?;
        lab.apply_example(name)?;
        lab.apply(VISITOR)?;
    }
    for (name, check) in examples.iter().rev() {
        enter(&lab, name)?;
        lab.kubectl(&["wait", "--for=condition=Ready", "pod/visitor", "--timeout=60s"])?;
        check(&lab).with_context(|| format!("examples/{name}"))?;
    }
    Ok(())
}

/// Makes a namespace the one that kubectl means when none is named.
fn enter(lab: &Lab, namespace: &str) -> Result<()> {
    lab.kubectl(&["config", "set-context", "--current", &format!("--namespace={namespace}")])?;
    Ok(())
}

/// Runs a line of shell in the visitor.
fn visit(lab: &Lab, line: &str) -> Result<String> {
    lab.exec("visitor", &["sh", "-c", line])
}

/// The different answers to 40 new connections of the visitor.
fn answers(lab: &Lab, url: &str) -> Result<BTreeSet<String>> {
    let each = format!("curl -sf -m 3 -D- {url} | grep -iE 'X-Pod|host='");
    let all = visit(lab, &format!("for i in $(seq 40); do {each}; done"))?;
    Ok(all.lines().map(|line| line.trim().to_owned()).collect())
}

/// The different pods that answer on a URL, once there are as many as there must be.
fn spread(lab: &Lab, url: &str, pods: usize) -> Result<BTreeSet<String>> {
    lab.eventually(&format!("{pods} pods answer at {url}"), || {
        let mut found = BTreeSet::new();
        for answer in answers(lab, url)? {
            let host = answer.split(' ').find_map(|word| word.strip_prefix("host="));
            found.insert(host.map_or_else(|| answer.clone(), ToOwned::to_owned));
        }
        ensure!(found.len() == pods, "{found:?}");
        Ok(found)
    })
}

/// A request from outside the cluster.
fn outside(lab: &Lab, url: &str) -> Result<String> {
    lab.eventually(&format!("{url} answers outside"), || {
        lab.within("client", &["curl", "-sf", "-m", "3", url])
    })
}

/// X1: three replicas behind one ClusterIP, found by every form of the name, on every node, and not outside.
fn web_app(lab: &Lab) -> Result<()> {
    lab.ready("app=web-app", 3)?;
    spread(lab, "http://web-service/", 3)?;
    for name in [
        "web-service.web-app",
        "web-service.web-app.svc",
        "web-service.web-app.svc.cluster.local",
        "web-service.web-app.svc.cluster.local.",
    ] {
        let page = visit(lab, &format!("curl -sf -m 3 http://{name}/"))?;
        ensure!(page.contains("Welcome to nginx!"), "{name}: {page}");
    }
    let address = lab.value("svc/web-service", "{.spec.clusterIP}")?;
    let url = format!("http://{address}/");
    for node in ["n1", "n2", "n3"] {
        let page = lab.within(node, &["curl", "-sf", "-m", "3", &url])?;
        ensure!(page.contains("Welcome to nginx!"), "{node}: {page}");
    }
    ensure!(
        lab.within("client", &["curl", "-sf", "-m", "1", &url]).is_err(),
        "a ClusterIP answers outside"
    );
    Ok(())
}

/// X2: the shop: its front is the only part that is seen outside; behind it, servers find each other by their names.
fn shop(lab: &Lab) -> Result<()> {
    lab.kubectl(&["wait", "--for=condition=Available", "deployment", "--all", "--timeout=60s"])?;
    let external = lab.eventually("the front has an external address", || {
        let found = lab.value("svc/frontend-service", "{.status.loadBalancer.ingress[0].ip}")?;
        ensure!(!found.is_empty(), "pending");
        Ok(found)
    })?;
    let front = outside(lab, &format!("http://{external}/"))?;
    ensure!(front.contains("app=frontend"), "{front}");
    let backend = outside(lab, &format!("http://{external}/api/orders"))?;
    ensure!(
        backend.contains("app=backend-service") && backend.contains("path=/orders"),
        "{backend}"
    );
    spread(lab, "http://backend-service/", 3)?;
    let query = "insert into orders values (7); select 'order', id from orders";
    let sql = format!(
        "mariadb -h mysql-service -uroot -pmypassword ecommerce -N \
         -e 'create or replace table orders (id int);' -e \"{query}\""
    );
    let rows = lab.eventually("MySQL answers behind its name", || visit(lab, &sql))?;
    ensure!(rows.trim() == "order\t7", "{rows}");
    let cache =
        visit(lab, "redis-cli -h redis-service set cart 3; redis-cli -h redis-service get cart")?;
    ensure!(cache.trim() == "OK\n3", "{cache}");
    for service in ["backend-service", "mysql-service", "redis-service"] {
        let address = lab.value(&format!("svc/{service}"), "{.spec.clusterIP}")?;
        let port = lab.value(&format!("svc/{service}"), "{.spec.ports[0].port}")?;
        let url = format!("telnet://{address}:{port}");
        let tried =
            lab.within("client", &["curl", "-sf", "-m", "1", "--connect-timeout", "1", &url]);
        ensure!(tried.is_err(), "{service} is seen outside");
    }
    let pods = lab.get(&["pods", "-l", "app=frontend"])?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().context("there is a front")?;
    let environment = lab.exec(pod, &["env"])?;
    for line in
        ["PORT=3000", "BACKEND_URL=http://backend-service:80", "REDIS_SERVICE_SERVICE_PORT=6379"]
    {
        // A Service that was made after the pod has no variables in it: redis.yaml comes last.
        let is_later = line.starts_with("REDIS");
        ensure!(is_later || environment.lines().any(|found| found == line), "{environment}");
    }
    Ok(())
}

/// X3: the same port on every node, whichever node runs the pods.
fn nodeport(lab: &Lab) -> Result<()> {
    lab.ready("app=web-app", 2)?;
    lab.ready("app=dashboard", 2)?;
    for node in ["n1", "n2", "n3"] {
        let path = "{.status.addresses[?(@.type==\"InternalIP\")].address}";
        let address = lab.value(&format!("node/{node}"), path)?;
        for (port, app) in [(30007, "web-app"), (32000, "dashboard")] {
            let answer = outside(lab, &format!("http://{address}:{port}/"))?;
            ensure!(answer.contains(&format!("app={app}")), "{node}:{port}: {answer}");
        }
    }
    spread(lab, "http://web-app-service/", 2)?;
    spread(lab, "http://dashboard-service/", 2)?;
    Ok(())
}

/// X4: the Service knows the port by its name alone; the pod's port changes and the Service stays as it is.
fn named_port(lab: &Lab) -> Result<()> {
    lab.ready("app.kubernetes.io/name=proxy", 1)?;
    spread(lab, "http://nginx-service/", 1)?;
    let before = lab.get(&["service", "nginx-service"])?;
    lab.kubectl(&["delete", "pod", "nginx", "--now"])?;
    lab.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: nginx, labels: {app.kubernetes.io/name: proxy}},
          spec: {containers: [{name: nginx, image: 'nginx:stable', env: [{name: NGINX_PORT, value: '8088'}],
          ports: [{containerPort: 8088, name: http-web-svc}]}]}}",
    )?;
    lab.ready("app.kubernetes.io/name=proxy", 1)?;
    spread(lab, "http://nginx-service/", 1)?;
    let slices = lab.get(&["endpointslices", "-l", "kubernetes.io/service-name=nginx-service"])?;
    ensure!(slices["items"][0]["ports"][0]["port"] == 8088, "{slices}");
    // Its status may have told meanwhile that no pod was there.
    let after = lab.get(&["service", "nginx-service"])?;
    ensure!(after["spec"] == before["spec"], "the Service was changed");
    Ok(())
}

/// X5: one named port, two numbers, one Service.
fn two_versions(lab: &Lab) -> Result<()> {
    lab.ready("app.kubernetes.io/name=backend", 2)?;
    spread(lab, "http://backend-service/", 2)?;
    let all = answers(lab, "http://backend-service/")?;
    for (version, port) in [("v1", 8080), ("v2", 9090)] {
        ensure!(
            all.iter().any(|answer| {
                answer.contains(&format!("version={version}"))
                    && answer.contains(&format!(":{port} "))
            }),
            "{all:?}"
        );
    }
    let slices =
        lab.get(&["endpointslices", "-l", "kubernetes.io/service-name=backend-service"])?;
    let count = slices["items"].as_array().map(Vec::len);
    ensure!(count == Some(2), "one slice for each number of the port: {slices}");
    Ok(())
}

/// X6: two containers of one pod, each behind its own port of one Service.
fn multi_port(lab: &Lab) -> Result<()> {
    lab.ready("app.kubernetes.io/name=MyApp", 1)?;
    let web = lab.eventually("the first port answers", || {
        visit(lab, "curl -sf -m 3 http://myapp-service/")
    })?;
    ensure!(web.contains("Welcome to nginx!"), "{web}");
    let api = visit(lab, "curl -sf -m 3 http://myapp-service:443/")?;
    ensure!(api.contains("app=my-api") && api.contains(":9377 "), "{api}");
    let found =
        visit(lab, "dig +short _https._tcp.myapp-service.multi-port.svc.cluster.local SRV")?;
    ensure!(found.trim() == "0 100 443 myapp-service.multi-port.svc.cluster.local.", "{found}");
    Ok(())
}

/// X7: three members that find each other by their names, agree, and remember after one is killed.
fn database(lab: &Lab) -> Result<()> {
    lab.ready("app=db", 3)?;
    let members = "--endpoints=db-0.db-headless:2379,db-1.db-headless:2379,db-2.db-headless:2379";
    let health = lab.eventually("all members are in the quorum", || {
        lab.exec("db-0", &["etcdctl", members, "endpoint", "health"])
    });
    health?;
    lab.exec("db-0", &["etcdctl", "put", "colour", "blue"])?;
    let read = lab.exec("db-2", &["etcdctl", "get", "colour", "--print-value-only"])?;
    ensure!(read.trim() == "blue", "{read}");
    let claims = lab.get(&["pvc"])?;
    let names: BTreeSet<&str> = claims["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|claim| claim["status"]["phase"] == "Bound")
        .filter_map(|claim| claim["metadata"]["name"].as_str())
        .collect();
    ensure!(names == BTreeSet::from(["data-db-0", "data-db-1", "data-db-2"]), "{claims}");
    let before = lab.value("pod/db-1", "{.metadata.uid}")?;
    lab.kubectl(&["delete", "pod", "db-1", "--now"])?;
    lab.eventually("the member is another pod", || {
        ensure!(lab.value("pod/db-1", "{.metadata.uid}")? != before, "the same");
        Ok(())
    })?;
    lab.ready("app=db", 3)?;
    let kept = lab.eventually("the member is back with its data", || {
        lab.exec("db-1", &["etcdctl", "get", "colour", "--print-value-only"])
    })?;
    ensure!(kept.trim() == "blue", "{kept}");
    Ok(())
}

/// X8: a pod asks the API by its name, with its own token: told apart are who it is and what it may.
fn api_access(lab: &Lab) -> Result<()> {
    lab.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/reader",
        "--timeout=60s",
    ])?;
    let said =
        lab.value("pod/reader", "{.status.containerStatuses[0].state.terminated.message}")?;
    ensure!(said.contains("\"kind\":\"ServiceList\"") || said.contains("ServiceList"), "{said}");
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let ask = |pod: &str, what: &str| {
        let line = format!(
            "D={folder}; curl -s -m 5 -w ' %{{http_code}}' --cacert $D/ca.crt \
             -H \"Authorization: Bearer $(cat $D/token)\" https://kubernetes.default.svc/api/v1/{what}"
        );
        lab.exec(pod, &["sh", "-c", &line])
    };
    let refused = ask("visitor", "namespaces/api-access/services")?;
    ensure!(refused.ends_with(" 403") && refused.contains("\"Forbidden\""), "{refused}");
    let who = "User \\\"system:serviceaccount:api-access:default\\\" cannot list resource \\\"services\\\"";
    ensure!(refused.contains(who), "{refused}");
    lab.kubectl(&[
        "create",
        "rolebinding",
        "visitor-reads",
        "--role=service-reader",
        "--serviceaccount=api-access:default",
    ])?;
    lab.eventually("the right is there", || {
        let allowed = ask("visitor", "namespaces/api-access/services")?;
        ensure!(allowed.ends_with(" 200"), "{allowed}");
        Ok(())
    })?;
    let elsewhere = ask("visitor", "namespaces/default/services")?;
    ensure!(elsewhere.ends_with(" 403"), "a Role ends at its namespace: {elsewhere}");
    let nobody = lab.exec(
        "visitor",
        &["curl", "-sk", "-w", " %{http_code}", "https://kubernetes.default.svc/api/v1/services"],
    )?;
    ensure!(nobody.ends_with(" 403") || nobody.ends_with(" 401"), "{nobody}");
    let stranger = lab.exec(
        "visitor",
        &[
            "curl",
            "-sk",
            "-w",
            " %{http_code}",
            "-H",
            "Authorization: Bearer nonsense",
            "https://kubernetes.default.svc/api/v1/services",
        ],
    )?;
    ensure!(stranger.ends_with(" 401"), "{stranger}");
    Ok(())
}
