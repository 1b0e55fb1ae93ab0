//! Makes sure that a container's image is present. Upstream: `pkg/kubelet/images/image_manager.go`.

use std::time::Instant;

use api::Kind;
use api::core::{Container, Pod};
use base64::Engine;
use client::EventKind;
use plan::pods::env::Sources;
use runtime::{Credentials, Image, ImageError};
use serde_json::Value;

use super::context::PodContext;
use super::start::Refused;

/// When to pull: as the container says, else always for `:latest` and images without a tag.
fn policy(container: &Container) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let floating =
        !image.contains('@') && name.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest");
    let default = if floating { "Always" } else { "IfNotPresent" };
    container.image_pull_policy.as_deref().unwrap_or(default)
}

/// The image of `container`, pulled if its policy asks for that, with the events that users know.
pub(super) async fn ensure(
    context: &PodContext,
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<Image, Refused> {
    let name = container.image.as_deref().unwrap_or_default();
    let store = context.agent.runtime().images();
    let event = |kind, reason: &str, message: String| {
        context.event(pod, Some(&container.name), kind, reason, message);
    };
    let present = match store.get(name) {
        Ok(image) => Some(image),
        Err(ImageError::InvalidReference { .. }) => {
            let message = format!(
                "Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: invalid reference format"
            );
            event(EventKind::Warning, "InspectFailed", message.clone());
            event(EventKind::Warning, "Failed", "Error: InvalidImageName".to_owned());
            return Err(Refused { reason: "InvalidImageName", message });
        }
        Err(_) => None,
    };
    match (policy(container), present) {
        ("Never", None) => {
            let message =
                format!("Container image {name:?} is not present with pull policy of Never");
            event(EventKind::Warning, "ErrImageNeverPull", message.clone());
            event(EventKind::Warning, "Failed", "Error: ErrImageNeverPull".to_owned());
            Err(Refused { reason: "ErrImageNeverPull", message })
        }
        ("Never" | "IfNotPresent", Some(image)) => {
            let message = format!("Container image {name:?} already present on machine");
            event(EventKind::Normal, "Pulled", message);
            Ok(image)
        }
        (_, present) => {
            event(EventKind::Normal, "Pulling", format!("Pulling image {name:?}"));
            let begin = Instant::now();
            match pull(context, pod, name, sources).await {
                Ok(image) => {
                    let took = go_duration(begin.elapsed());
                    let message = format!(
                        "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {} bytes.",
                        image.size_bytes
                    );
                    event(EventKind::Normal, "Pulled", message);
                    Ok(image)
                }
                Err(error) => match present {
                    Some(image) if context.agent.options.use_present_images => {
                        let message =
                            format!("Container image {name:?} already present on machine");
                        event(EventKind::Normal, "Pulled", message);
                        Ok(image)
                    }
                    _ => {
                        let message = error.to_string();
                        let text = format!("Failed to pull image {name:?}: {message}");
                        event(EventKind::Warning, "Failed", text);
                        event(EventKind::Warning, "Failed", "Error: ErrImagePull".to_owned());
                        Err(Refused { reason: "ErrImagePull", message })
                    }
                },
            }
        }
    }
}

/// Tries every credential that fits the registry, and none at last.
async fn pull(
    context: &PodContext,
    pod: &Pod,
    name: &str,
    sources: &Sources,
) -> Result<Image, ImageError> {
    let store = context.agent.runtime().images();
    for credentials in credentials(pod, name, sources) {
        if let Ok(image) = store.pull(name, Some(&credentials)).await {
            return Ok(image);
        }
    }
    store.pull(name, None).await
}

/// Credentials of the pod's `imagePullSecrets` for the image's registry.
fn credentials(pod: &Pod, image: &str, sources: &Sources) -> Vec<Credentials> {
    let registry = registry(image);
    let secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let mut found = Vec::new();
    for secret in secrets.filter_map(|secret| sources.secrets.get(&secret.name)) {
        let data = secret.data.as_ref();
        let text = data.and_then(|data| data.get(".dockerconfigjson"));
        let Some(config) = text.and_then(|text| serde_json::from_slice::<Value>(&text.0).ok())
        else {
            tracing::debug!(component = "kubelet", name = secret.name(), "not a docker config");
            continue;
        };
        for (host, entry) in config["auths"].as_object().into_iter().flatten() {
            let host = host.trim_start_matches("https://").trim_start_matches("http://");
            let host = host.split('/').next().unwrap_or_default();
            let host = if host == "index.docker.io" { "docker.io" } else { host };
            if host == registry {
                found.extend(login(entry));
            }
        }
    }
    found
}

/// The registry of an image: the part before the first slash when it looks like a host.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn login(entry: &Value) -> Option<Credentials> {
    if let (Some(user), Some(password)) = (entry["username"].as_str(), entry["password"].as_str()) {
        return Some(Credentials { username: user.to_owned(), password: password.to_owned() });
    }
    let bytes = base64::prelude::BASE64_STANDARD.decode(entry["auth"].as_str()?).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credentials { username: user.to_owned(), password: password.to_owned() })
}

/// A duration as Go prints it, in milliseconds or seconds.
fn go_duration(duration: std::time::Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{}ms", millis.max(1));
    }
    let text = format!("{:.3}", duration.as_secs_f64());
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floating_tags_are_always_pulled() {
        let policy_of = |image: &str| {
            let container = Container { image: Some(image.to_owned()), ..Container::default() };
            policy(&container).to_owned()
        };
        assert_eq!(policy_of("nginx"), "Always");
        assert_eq!(policy_of("registry:5000/nginx"), "Always");
        assert_eq!(policy_of("nginx:latest"), "Always");
        assert_eq!(policy_of("nginx:1.27"), "IfNotPresent");
        assert_eq!(policy_of("nginx@sha256:00"), "IfNotPresent");
    }

    #[test]
    fn registry_of_an_image() {
        assert_eq!(registry("nginx"), "docker.io");
        assert_eq!(registry("library/nginx"), "docker.io");
        assert_eq!(registry("localhost:5000/a/b:c"), "localhost:5000");
    }
}
