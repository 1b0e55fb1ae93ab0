//! Bad input against the real server: what is refused, in upstream's words, and that nothing else is touched.
//!
//! The cases are `refusals/*.yaml`: what is tried with kubectl, and all that kubectl must print.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

/// One thing that is tried.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// kubectl's arguments; `create` when not given.
    #[serde(default)]
    r#try: Vec<String>,
    /// The object that kubectl gets with `-f -`.
    #[serde(default)]
    with: Option<Value>,
    /// The same as text, for what is no object.
    #[serde(default)]
    text: Option<String>,
    /// All that kubectl prints on its standard error.
    error: String,
}

/// One request that kubectl would not make.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    /// What is wrong with it.
    say: String,
    /// `GET` when not given.
    method: Option<String>,
    /// Path and query.
    path: String,
    /// Lines of the head.
    #[serde(default)]
    headers: Vec<String>,
    /// The body, as it is sent.
    body: Option<String>,
    /// Without the administrator's certificate.
    #[serde(default)]
    anonymous: bool,
    /// The status of the answer.
    status: u16,
    /// The message of the Status in its body.
    message: Option<String>,
    /// The whole body.
    body_is: Option<String>,
    /// Its `Warning` headers.
    #[serde(default)]
    warnings: Vec<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refusals")
}

fn cases<T: serde::de::DeserializeOwned>(name: &str) -> Result<Vec<T>> {
    let file = folder().join(name).with_extension("yaml");
    let text = std::fs::read_to_string(&file)?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is no list of cases", file.display()))
}

/// Whether `said` is what is expected; an ellipsis at the end leaves the rest open.
fn fits(said: &str, expected: &str) -> bool {
    match expected.trim().strip_suffix('…') {
        Some(start) => said.starts_with(start),
        None => said == expected.trim(),
    }
}

/// Runs one case; what kubectl printed when that was something else than it should.
fn differs(lab: &Lab, case: &Case) -> Result<Option<String>> {
    let input = match (&case.with, &case.text) {
        (Some(object), _) => Some(object.to_string()),
        (None, text) => text.clone(),
    };
    let mut args: Vec<&str> = case.r#try.iter().map(String::as_str).collect();
    if args.is_empty() {
        args.push("create");
    }
    if input.is_some() {
        args.extend(["-f", "-"]);
    }
    let mut command = lab.kubectl_command(&args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("the input is a pipe")?;
    stdin.write_all(input.unwrap_or_default().as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        return Ok(Some(format!(
            "it succeeded: {}{said}",
            String::from_utf8_lossy(&output.stdout)
        )));
    }
    Ok((!fits(&said, &case.error)).then_some(said))
}

/// Runs all cases of a file; their number.
fn run(lab: &Lab, file: &str) -> Result<usize> {
    let cases: Vec<Case> = cases(file)?;
    let mut wrong = String::new();
    for case in &cases {
        if let Some(said) = differs(lab, case)? {
            let tried = case.with.as_ref().map(ToString::to_string).or_else(|| case.text.clone());
            wrong += &format!(
                "\n{file}: kubectl {:?} {}\n  must say {}\n  said     {said}\n",
                case.r#try,
                tried.unwrap_or_default(),
                case.error.trim()
            );
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(cases.len())
}

/// The administrator's way into the API, as files for curl.
struct Door {
    server: String,
    folder: PathBuf,
}

impl Door {
    fn open(lab: &Lab) -> Result<Self> {
        let text = std::fs::read_to_string(lab.kubeconfig())?;
        let config: Value = serde_saphyr::from_str(&text)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let folder = lab.dir();
        for (name, data) in [
            ("ca", &cluster["certificate-authority-data"]),
            ("crt", &user["client-certificate-data"]),
            ("key", &user["client-key-data"]),
        ] {
            let data = data.as_str().context("the kubeconfig has it")?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(data)?;
            std::fs::write(folder.join(name), bytes)?;
        }
        let server = cluster["server"].as_str().context("the kubeconfig has a server")?;
        Ok(Self { server: server.to_owned(), folder })
    }

    /// Status, `Warning` headers and body of an answer; `body` comes from a file when it begins with `@`.
    fn ask(&self, request: &Http) -> Result<(u16, Vec<String>, String)> {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "-i", "-m", "20", "--cacert"]).arg(self.folder.join("ca"));
        if !request.anonymous {
            curl.arg("--cert").arg(self.folder.join("crt"));
            curl.arg("--key").arg(self.folder.join("key"));
        }
        curl.args(["-X", request.method.as_deref().unwrap_or("GET")]);
        for header in &request.headers {
            curl.args(["-H", header]);
        }
        if let Some(body) = &request.body {
            curl.args(["--data-binary", body]);
        }
        let output = curl.arg(format!("{}{}", self.server, request.path)).output()?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let (head, body) = text.split_once("\n\n").with_context(|| {
            format!("{}: curl: {}", request.say, String::from_utf8_lossy(&output.stderr))
        })?;
        let status = head.split(' ').nth(1).context("a status")?.parse()?;
        let warnings = head.lines().filter_map(|line| line.strip_prefix("warning: "));
        Ok((status, warnings.map(str::to_owned).collect(), body.trim().to_owned()))
    }
}

/// Requests that are wrong in themselves; their number.
fn broken_clients(lab: &Lab) -> Result<usize> {
    let door = Door::open(lab)?;
    let cases: Vec<Http> = cases("http")?;
    let mut wrong = String::new();
    for case in &cases {
        let (status, warnings, body) = door.ask(case)?;
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        let message = answer["message"].as_str().unwrap_or_default();
        let said = case.message.as_ref().is_none_or(|expected| fits(message, expected))
            && case.body_is.as_ref().is_none_or(|expected| body == *expected);
        let is_status =
            case.message.is_none() || (answer["kind"] == "Status" && answer["code"] == case.status);
        if status != case.status || !said || !is_status || warnings != case.warnings {
            wrong += &format!("\n{}: {status} {warnings:?} {body}\n", case.say);
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(cases.len())
}

/// Bodies over 3 MiB, with a length and without.
fn too_much(lab: &Lab) -> Result<usize> {
    let door = Door::open(lab)?;
    let file = lab.dir().join("large");
    let mut object = String::from(r#"{"metadata": {"name": "large"}, "data": {"a": ""#);
    object.push_str(&"x".repeat(3 * 1024 * 1024));
    object.push_str("\"}}");
    std::fs::write(&file, object)?;
    let mut request = Http {
        say: "a body over the limit".to_owned(),
        method: Some("POST".to_owned()),
        path: "/api/v1/namespaces/default/configmaps".to_owned(),
        headers: vec!["content-type: application/json".to_owned()],
        body: Some(format!("@{}", file.display())),
        anonymous: false,
        status: 413,
        message: None,
        body_is: None,
        warnings: Vec::new(),
    };
    for lengthless in [false, true] {
        if lengthless {
            request.headers.push("transfer-encoding: chunked".to_owned());
        }
        let (status, _, body) = door.ask(&request)?;
        let answer: Value = serde_json::from_str(&body)?;
        ensure!(
            status == 413
                && answer["reason"] == "RequestEntityTooLarge"
                && answer["message"] == "Request entity too large: limit is 3145728",
            "{status} {body}"
        );
    }
    Ok(2)
}

/// Every object that the cases are tried on, with its revision.
fn revisions(lab: &Lab) -> Result<String> {
    let kinds = "services,pods,deployments,statefulsets,endpoints,endpointslices,configmaps,secrets,\
                 persistentvolumeclaims,persistentvolumes,storageclasses,ingresses,networkpolicies,roles,rolebindings,\
                 limitranges,namespaces,serviceaccounts,servicecidrs";
    let path = "-o=jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}";
    lab.kubectl(&["get", kinds, path])
}

#[test]
fn bad_input_is_refused_in_upstreams_words_and_changes_nothing() -> Result<()> {
    let lab = Lab::up(BINARY, 1, &[])?;
    lab.apply(&std::fs::read_to_string(folder().join("objects.yml"))?)?;
    settled(&lab)?;
    let before = revisions(&lab)?;
    let files = ["services", "pods", "workloads", "network", "config", "access", "requests"];
    let mut done: Vec<Result<usize>> = files.iter().map(|file| run(&lab, file)).collect();
    done.push(broken_clients(&lab));
    done.push(too_much(&lab));
    let failed: String =
        done.iter().filter_map(|done| done.as_ref().err()).map(ToString::to_string).collect();
    ensure!(failed.is_empty(), "{failed}");
    let number: usize = done.into_iter().flatten().sum();
    ensure!(number >= 80, "there are only {number} cases");
    let after = revisions(&lab)?;
    ensure!(before == after, "a refusal changed something:\n{before}\n{after}");
    Ok(())
}

/// Waits until the controllers have said what they have to say about the first objects.
fn settled(lab: &Lab) -> Result<()> {
    lab.eventually("the controllers are done", || {
        // At first the node may not be ready, which the scheduler says too.
        let pod = lab.value("pod/waiting", "{.status.conditions[0].message}")?;
        // A Deployment has a second generation: its revision is an annotation.
        let sizes = lab.value("deployment/web", "{.status.observedGeneration}")?
            + &lab.value("statefulset/db", "{.status.observedGeneration}")?;
        let claim = lab.value("pvc/data", "{.status.phase}")?;
        let slices = lab.get(&["endpointslices"])?;
        let slices = slices["items"].as_array().map_or(0, Vec::len);
        let endpoints = lab.get(&["endpoints"])?;
        let endpoints = endpoints["items"].as_array().map_or(0, Vec::len);
        ensure!(
            pod.contains("didn't match Pod's node affinity/selector")
                && (sizes.as_str(), claim.as_str()) == ("21", "Pending"),
            "{pod} {sizes} {claim}"
        );
        ensure!(slices == 5 && endpoints == 4, "{slices} slices, {endpoints} endpoints");
        // Services without endpoints are told so a while later.
        let path =
            "-o=jsonpath={.items[*].status.conditions[?(@.type==\"EndpointsReady\")].reason}";
        let told = lab.kubectl(&["get", "services", path])?;
        ensure!(told.split_whitespace().count() == 3, "diagnosed: {told}");
        Ok(())
    })
}
