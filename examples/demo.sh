#!/usr/bin/env bash
# The main job, end to end: a three-node cluster, the shop, and a database that forms a quorum by its names.
set -euo pipefail
rhumb=${1:?usage: examples/demo.sh PATH-OF-RHUMB}
here=$(cd "$(dirname "$0")" && pwd)
cache=${RHUMB_CACHE:-$HOME/.cache/rhumb}

if [ "$(id -u)" -ne 0 ]; then
  echo "This needs root: a cluster is network namespaces and kernel rules." >&2
  exit 1
fi

begun=$(date +%s%N)
say() { printf '%s\n' "$*"; }
done_() { local ms=$(( ($(date +%s%N) - begun) / 1000000 )); printf '  ✓ %4d.%03ds  %s\n' $((ms / 1000)) $((ms % 1000)) "$*"; }
check() { # what, command…: tries for a minute
  local what=$1 tries=0
  shift
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ]; then
      say "  ✗ $what" >&2
      "$@" >&2 || true
      exit 1
    fi
    sleep 0.1
  done
  done_ "$what"
}

say "Images from Debian packages"
"$here/images/build.sh" "$cache/images" | sed 's/^/    /'
done_ "images are in $cache/images"

say "A cluster of three nodes"
"$rhumb" up --nodes 3 --detach | grep '✓'
"$rhumb" images import "$cache"/images/* >/dev/null
done_ "images imported"
KUBECONFIG=$("$rhumb" kubeconfig)
export KUBECONFIG

say "The shop"
kubectl apply -f "$here/shop/" | sed 's/^/    /'
check "every Deployment is available" kubectl wait --for=condition=Available deployment --all --timeout=2s
external=$(kubectl get svc frontend-service -o 'jsonpath={.status.loadBalancer.ingress[0].ip}')
outside=(ip netns exec rhumb-default-client)
check "the frontend answers outside the cluster at $external" "${outside[@]}" curl -sf -m 2 "http://$external/"
check "and on this machine" curl -sf -m 2 "http://$external/"
check "the frontend reaches the backend by its name" "${outside[@]}" curl -sf -m 2 "http://$external/api/"
node=(ip netns exec rhumb-default-n1)
address_of() { kubectl get svc "$1" -o 'jsonpath={.spec.clusterIP}'; }
ping_redis() {
  "${node[@]}" bash -c 'exec 3<>/dev/tcp/'"$(address_of redis-service)"'/6379; printf "PING\r\n" >&3; read -t 2 -r answer <&3; [[ $answer == +PONG* ]]'
}
check "Redis answers PING at its ClusterIP" ping_redis
greet_mysql() { # the server speaks first: its version is in the greeting
  "${node[@]}" bash -c 'exec 3<>/dev/tcp/'"$(address_of mysql-service)"'/3306; timeout 2 head -c 64 <&3 | grep -aqi mariadb'
}
check "MySQL greets at its ClusterIP" greet_mysql
inside=$(address_of backend-service)
if "${outside[@]}" curl -sf -m 1 "http://$inside/" >/dev/null; then
  say "  ✗ a ClusterIP answers outside the cluster" >&2
  exit 1
fi
done_ "the backend's ClusterIP does not answer outside"

say "A rolling update under load"
kubectl rollout restart deployment/backend-api | sed 's/^/    /'
total=0 lost=0
while [ "$total" -lt 300 ]; do
  "${node[@]}" curl -sf -m 2 -o /dev/null "http://$inside/" || lost=$((lost + 1))
  total=$((total + 1))
done
check "the rollout is complete" kubectl rollout status deployment/backend-api --timeout=2s
done_ "$total requests during the rollout, $lost lost"

say "A database of three members"
kubectl apply -f "$here/database/" | sed 's/^/    /'
check "all three members are ready" kubectl wait --for=condition=Ready pod -l app=db --timeout=2s
healthy() {
  local pod=$1
  "${node[@]}" curl -sf -m 2 "http://$(kubectl get pod "$pod" -o 'jsonpath={.status.podIP}'):2379/health" | grep -q true
}
for member in db-0 db-1 db-2; do check "$member is in the quorum" healthy "$member"; done

say ""
kubectl get svc,endpointslices,pods -o wide
say ""
say "The cluster is yours:"
say "  export KUBECONFIG=$KUBECONFIG"
say "  $rhumb status"
say "  $rhumb down"
