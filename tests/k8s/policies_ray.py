"""What KubeRay's operator checks when it runs, and the CRDs do not; and what it leaves to us.

Restated from ray-operator/controllers/ray/utils/validation.go and common/job.go, v1.7.0.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator

import yaml
from rendering import at
from world import World, environment, locked

_NAMES = {"RayCronJob": 36, "RayJob": 47, "RayCluster": 53, "CronJob": 52}
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
_OF_PARAMS = {"num-cpus", "num-gpus", "memory", "resources"}
_DELETIONS = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"
_STOP_GRACE_S = 60
"""`cluster.stop_grace_s` of a pipeline that does not say."""


def names_fit(world: World) -> Iterator[str]:
    """Operators append to names, which become labels of pods."""
    for document in world.of_kind(*_NAMES):
        kind, name = document["kind"], document["metadata"]["name"]
        if len(name) > _NAMES[kind]:
            yield f"{kind}/{name}: the name has {len(name)} characters, {_NAMES[kind]} may be"
        if not _DNS_1035.fullmatch(name):
            yield f"{kind}/{name}: a name begins with a letter and has no dot"


def clusters_end(world: World) -> Iterator[str]:
    """Rules of deletion."""
    for ray in world.ray_objects:
        job, is_shut_down = ray.job, ray.job.get("shutdownAfterJobFinishes", False)
        rules = at(job, "deletionStrategy.deletionRules", [])
        if job.get("ttlSecondsAfterFinished", 0) > 0 and not is_shut_down:
            yield f"{ray.title}: ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
        if rules and is_shut_down:
            yield f"{ray.title}: deletionRules and shutdownAfterJobFinishes exclude each other"
        if ray.is_autoscaled and any(rule["policy"] == "DeleteWorkers" for rule in rules):
            yield f"{ray.title}: DeleteWorkers does not go with autoscaling"
        is_suspended = ray.document["kind"] == "RayJob" and job.get("suspend")
        if is_suspended and not is_shut_down:
            yield f"{ray.title}: suspend needs shutdownAfterJobFinishes"


def deletion_rules_are_in_order(world: World) -> Iterator[str]:
    """Workers go first, the RayJob last, and for one end of a run each goes once."""
    for ray in world.ray_objects:
        waits: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for rule in at(ray.job, "deletionStrategy.deletionRules", []):
            condition = rule["condition"]
            end = condition.get("jobStatus") or condition.get("jobDeploymentStatus")
            waits[end][rule["policy"]].append(condition.get("ttlSeconds", 0))
        for end, by_policy in waits.items():
            for policy, seconds in by_policy.items():
                if len(seconds) > 1:
                    yield f"{ray.title}: two deletionRules for {end} are {policy}"
            for first, then in itertools.pairwise(one for one in _DELETIONS if one in by_policy):
                if min(by_policy[then]) < max(by_policy[first]):
                    yield f"{ray.title}: {then} comes before {first} for {end}"


def modes_fit(world: World) -> Iterator[str]:
    """What goes with which way of submission."""
    for ray in world.ray_objects:
        job, mode = ray.job, ray.job.get("submissionMode", "K8sJobMode")
        if job and not job.get("clusterSelector") and not ray.cluster:
            yield f"{ray.title}: one of rayClusterSpec and clusterSelector must be there"
        if job.get("backoffLimit", 0) and (job.get("clusterSelector") or mode == "InteractiveMode"):
            yield f"{ray.title}: backoffLimit goes with a cluster of the run's own"
        if mode != "SidecarMode":
            continue
        for name in ("clusterSelector", "submitterPodTemplate", "submitterConfig"):
            if job.get(name):
                yield f"{ray.title}: SidecarMode has no {name}"
        if at(ray.cluster, "headGroupSpec.template.spec.restartPolicy", "Never") != "Never":
            yield f"{ray.title}: with SidecarMode the head's restartPolicy is Never"
        if world.level == "restricted":
            yield (
                f"{ray.title}: SidecarMode's container has no securityContext, and the namespace "
                "enforces restricted"
            )


def entrypoint_survives_its_shells(world: World) -> Iterator[str]:
    """The submitter's shell reads it first, without the head's variables."""
    for ray in world.ray_objects:
        bare = re.sub(r"'[^']*'", "", ray.job.get("entrypoint", ""))
        if "$" in bare:
            yield (
                f"{ray.title}: the submitter's shell, which has not the head's variables, expands "
                "what the entrypoint has outside single quotes"
            )


def runtime_env_is_a_mapping(world: World) -> Iterator[str]:
    """The operator parses it when the run begins."""
    for ray in world.ray_objects:
        text = ray.job.get("runtimeEnvYAML", "{}")
        try:
            parsed = yaml.safe_load(text)
        except yaml.YAMLError:
            parsed = None
        if not isinstance(parsed, dict):
            yield f"{ray.title}: runtimeEnvYAML is no YAML mapping"


def replicas_are_bounded(world: World) -> Iterator[str]:
    """A forgotten maxReplicas is two thousand million."""
    for ray in world.ray_objects:
        for group in ray.groups:
            name = f"{ray.title} {group.get('groupName')}"
            least, most = group.get("minReplicas"), group.get("maxReplicas")
            if least is None or most is None:
                yield f"{name}: minReplicas and maxReplicas must be written"
            elif not least <= group.get("replicas", least) <= most:
                yield f"{name}: minReplicas <= replicas <= maxReplicas does not hold"


def resources_are_said_once(world: World) -> Iterator[str]:
    """Either in rayStartParams or in the group's own fields."""
    for ray in world.ray_objects:
        for group in (ray.cluster.get("headGroupSpec", {}), *ray.groups):
            name = f"{ray.title} {group.get('groupName', 'head')}"
            params = group.get("rayStartParams", {})
            if group.get("resources") and _OF_PARAMS & set(params):
                yield f"{name}: resources stand in rayStartParams, too"
            if "labels" in params:
                yield f"{name}: labels are a field of the group, not of rayStartParams"


def autoscaling_fits(world: World) -> Iterator[str]:
    """Version 2 of the autoscaler replaces pods, and is asked for in one place."""
    for ray in world.ray_objects:
        version = at(ray.cluster, "autoscalerOptions.version")
        pods = list(ray.pods)
        is_in_head = pods and _AUTOSCALER_V2 in {
            name for one in pods[0].containers for name in environment(one)
        }
        if is_in_head and version:
            yield f"{ray.title}: {_AUTOSCALER_V2} and autoscalerOptions.version say the same"
        if is_in_head and not ray.is_autoscaled:
            yield f"{ray.title}: {_AUTOSCALER_V2} needs enableInTreeAutoscaling"
        for pod in pods:
            if version == "v2" and pod.spec.get("restartPolicy", "Never") != "Never":
                yield f"{pod.owner}: with autoscaler v2 restartPolicy is Never"


def authentication_is_said(world: World) -> Iterator[str]:
    """Ray's default changed in 2.59 and 2.61."""
    for ray in world.ray_objects:
        options = ray.cluster.get("authOptions", {})
        if ray.cluster and "mode" not in options:
            yield f"{ray.title}: authOptions.mode must be written"
        if options.get("enableK8sTokenAuth") and ray.job:
            yield f"{ray.title}: a RayJob has no enableK8sTokenAuth"
        for settings in world.of_kind("ConfigMap"):
            said = at(settings, "data", {}).get("RAY_AUTH_MODE", options.get("mode"))
            if "mode" in options and said != options["mode"]:
                yield f"{ray.title}: authOptions.mode is {options['mode']}, RAY_AUTH_MODE {said}"


def redis_is_said_once(world: World) -> Iterator[str]:
    """Where GCS fault tolerance is an option, it is no variable."""
    names = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}
    for ray in world.ray_objects:
        if not ray.cluster.get("gcsFaultToleranceOptions"):
            continue
        found = {name for pod in ray.pods for one in pod.containers for name in environment(one)}
        for name in sorted(names & found):
            yield f"{ray.title}: {name} stands beside gcsFaultToleranceOptions"


def gates_are_off(world: World) -> Iterator[str]:
    """Fields that an operator as it comes refuses."""
    for ray in world.ray_objects:
        for name in _GATED:
            if name in ray.cluster:
                yield f"{ray.title}: {name} needs a feature gate that is off"
        if ray.job and "upgradeStrategy" in ray.cluster:
            yield f"{ray.title}: a RayJob's cluster has no upgradeStrategy"


def versions_are_the_locked(world: World) -> Iterator[str]:
    """Driver, workers and cluster must be of one Ray."""
    ray_version = locked("ray")
    for ray in world.ray_objects:
        said = ray.cluster.get("rayVersion")
        if ray.cluster and said != ray_version:
            yield f"{ray.title}: rayVersion is {said}, requirements.lock has {ray_version}"
        for pod in ray.pods:
            for container in pod.containers:
                tag = container["image"].partition("@")[0].rpartition(":")[2]
                if f"-ray{ray_version}-" not in tag:
                    yield f"{pod.owner}: the image's tag {tag} does not say ray{ray_version}"


def stops_leave_time(world: World) -> Iterator[str]:
    """A driver that is stopped saves a checkpoint first."""
    for ray in world.ray_objects:
        head = next(iter(ray.pods), None)
        if head is None:
            continue
        wait = next(
            (environment(one).get("RAY_JOB_STOP_WAIT_TIME_S") for one in head.containers), 0
        )
        if int(wait or 0) <= _STOP_GRACE_S:
            yield f"{head.owner}: RAY_JOB_STOP_WAIT_TIME_S must be above {_STOP_GRACE_S}"
        if head.spec.get("terminationGracePeriodSeconds", 30) <= int(wait or 0):
            yield f"{head.owner}: terminationGracePeriodSeconds must be above {wait}"


def workers_leave_before_they_go(world: World) -> Iterator[str]:
    """Ray is not told by Kubernetes that a pod goes."""
    for ray in world.ray_objects:
        workers = itertools.islice(ray.pods, 1, 1 + len(ray.groups))  # between head and submitter
        for pod in workers:
            hook = pod.containers[0].get("lifecycle", {}).get("preStop", {}).get("exec", {})
            match hook.get("command"):
                case ["pretune", "drain", "--within", seconds]:
                    if pod.spec.get("terminationGracePeriodSeconds", 30) <= float(seconds):
                        yield f"{pod.owner}: terminationGracePeriodSeconds must be above {seconds}"
                case _:
                    yield f"{pod.owner}: its preStop hook must be pretune drain --within SECONDS"


def the_cronjob_outlasts_its_run(world: World) -> Iterator[str]:
    """One that waits must not be ended before what it waits for."""
    runs = {ray.document["metadata"]["name"]: ray.job for ray in world.ray_objects}
    for document in world.of_kind("CronJob"):
        spec = document["spec"]["jobTemplate"]["spec"]
        args = spec["template"]["spec"]["containers"][0].get("args", [])
        options = dict(itertools.pairwise(args))
        run = runs.get(options.get("--from", "").rpartition("/")[2])
        if run is None:
            yield f"CronJob/{document['metadata']['name']}: --from names no template"
            continue
        attempts = run.get("backoffLimit", 0) + 1
        least = attempts * run["activeDeadlineSeconds"] + int(options.get("--pending-timeout", 0))
        if spec["activeDeadlineSeconds"] <= least:
            yield (
                f"CronJob/{document['metadata']['name']}: activeDeadlineSeconds must be above "
                f"{least}: {attempts} attempts and the time in the queue"
            )


RULES = (
    names_fit, clusters_end, deletion_rules_are_in_order, modes_fit,
    entrypoint_survives_its_shells, runtime_env_is_a_mapping, replicas_are_bounded,
    resources_are_said_once, autoscaling_fits, authentication_is_said, redis_is_said_once,
    gates_are_off, versions_are_the_locked, stops_leave_time,
    workers_leave_before_they_go, the_cronjob_outlasts_its_run,
)  # fmt: skip
