"""Runs a command of mlclip on Google Kubernetes Engine, as a JobSet: one process for each node.

    python launch/gke.py --name=tai --image=IMAGE --nodes=4 --claim=runs --mount=/runs \\
        --tpu_accelerator=tpu-v5-lite-podslice --tpu_topology=4x4 --tpu_chips=4 \\
        train --config=tai --workdir=/runs/tai

or with --gpus=8 --gpu_accelerator=nvidia-h100-80gb instead of the flags of the TPU. A process that was told
to stop and has saved, and one whose node is taken away, is replaced; a crash starts all again, up to
--max_restarts times; invalid input ends all.
"""

import math
import os.path
import re
from pathlib import PurePosixPath

import command
import yaml
from absl import flags

WORKER = "worker"
PORT = 8476  # of process 0, where the others find it
CONTAINER = "mlclip"
SPOT = "cloud.google.com/gke-spot"


def define_flags(values):
    flags.DEFINE_string("name", None, "of the JobSet", flag_values=values)
    flags.DEFINE_string("namespace", None, "where; by default kubectl's own", flag_values=values)
    flags.DEFINE_string("image", None, "of the container: Python, with mlclip-jax", flag_values=values)
    flags.DEFINE_integer("nodes", 1, "how many; of a TPU slice, all", lower_bound=1, flag_values=values)
    flags.DEFINE_string("tpu_accelerator", None, "the TPU, such as tpu-v5-lite-podslice", flag_values=values)
    flags.DEFINE_string("tpu_topology", None, "of the slice, such as 4x4", flag_values=values)
    flags.DEFINE_integer("tpu_chips", None, "TPU chips of each node", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("gpus", None, "GPUs of each node", lower_bound=1, flag_values=values)
    flags.DEFINE_string("gpu_accelerator", None, "the GPU, such as nvidia-l4", flag_values=values)
    flags.DEFINE_string(
        "claim", None, "a PersistentVolumeClaim that many nodes may write", flag_values=values
    )
    flags.DEFINE_string("mount", "/runs", "where its files are seen", flag_values=values)
    flags.DEFINE_boolean("spot", False, "on Spot nodes, which may be taken away", flag_values=values)
    flags.DEFINE_string("service_account", None, "of Kubernetes, for the pods", flag_values=values)
    flags.DEFINE_integer("max_restarts", 3, "after crashes", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("grace_seconds", 120, "from SIGTERM to SIGKILL", lower_bound=1, flag_values=values)


def launch(values, order):
    manifest = yaml.safe_dump(make_manifest(values, order), sort_keys=False, allow_unicode=True, width=110)
    if values.dry_run:
        print(manifest, end="")
        return 0
    return command.call(["kubectl", "apply", "-f", "-"], input=manifest, text=True)


def make_manifest(values, order):
    """The JobSet, as nested dicts.

    Raises:
      InputError: a flag is missing, or they do not belong together.
    """
    command.require(values, "name", "image", "claim")
    check_name(values.name, values.nodes)
    job = {
        "completionMode": "Indexed",
        "parallelism": values.nodes,
        "completions": values.nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                exit_code_rule("FailJob", 2),
                exit_code_rule("Ignore", command.RESTART),  # replaces the pod
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"spec": make_pod(values, order)},
    }
    mistake = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    namespace = {"namespace": values.namespace} if values.namespace else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": values.name, **namespace},
        "spec": {
            "failurePolicy": {"maxRestarts": values.max_restarts, "rules": [mistake]},
            "replicatedJobs": [{"name": WORKER, "replicas": 1, "template": {"spec": job}}],
        },
    }


def exit_code_rule(action, code):
    return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [code]}}


def make_pod(values, order):
    """The pod of each process, as nested dicts."""
    mount = PurePosixPath(os.path.normpath(values.mount))
    if not mount.is_absolute() or not PurePosixPath(os.path.normpath(order.folder)).is_relative_to(mount):
        raise command.InputError(
            f"{order.folder} is not in --mount={values.mount}, where the nodes find --claim={values.claim}; "
            "give a path in there"
        )
    resources, selector = accelerator(values)
    mounts = [{"name": "runs", "mountPath": str(mount)}]
    volumes = [{"name": "runs", "persistentVolumeClaim": {"claimName": values.claim}}]
    processes, environment = ["--multihost"], {}  # GKE tells the processes of a TPU who they are
    if values.gpus:
        processes = [
            f"--coordinator={values.name}-{WORKER}-0-0.{values.name}:{PORT}",  # as JobSet names pod 0
            f"--num_processes={values.nodes}",
            "--process_id=$(JOB_COMPLETION_INDEX)",
        ]
        index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        environment = {"env": [{"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": index}}]}
        # The GPUs of a node talk through shared memory, of which a container has 64 MB by itself.
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    # Kubernetes puts a value for $(NAME), and $ for $$.
    arguments = [argument.replace("$", "$$") for argument in order.arguments]
    container = {
        "name": CONTAINER,
        "image": values.image,
        "command": ["python", "-m", "mlclip_jax"],
        "args": [order.name, *processes, *arguments],
        **environment,
        "resources": {"limits": resources},
        "volumeMounts": mounts,
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": values.grace_seconds,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": volumes,
    }
    if values.service_account:
        pod["serviceAccountName"] = values.service_account
    if values.spot:
        selector[SPOT] = "true"
        pod["tolerations"] = [{"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    return pod


def check_name(name, nodes):
    """Refuses a name of a JobSet that could not name its pods, which are hosts of a network.

    Raises:
      InputError: it is no such name, or too long.
    """
    longest = 63 - len(f"-{WORKER}-0-{nodes - 1}-abcde")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > longest:
        raise command.InputError(
            f"invalid --name={name}: must be of a-z, 0-9 and -, begin with a letter, not end with -, "
            f"and have at most {longest} characters"
        )


def accelerator(values):
    """What a pod is given of a node, and the labels of the node: two dicts.

    Raises:
      InputError: there is no choice of one TPU or GPU.
    """
    tpu = ("tpu_accelerator", "tpu_topology", "tpu_chips")
    given = [name for name in tpu if values[name].value is not None]
    if bool(given) == bool(values.gpus):
        raise command.InputError(f"give either --{', --'.join(tpu)} or --gpus")
    if values.gpus:
        kind = {"cloud.google.com/gke-accelerator": values.gpu_accelerator} if values.gpu_accelerator else {}
        return {"nvidia.com/gpu": values.gpus}, kind
    command.require(values, *tpu)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", values.tpu_topology):
        raise command.InputError(f"invalid --tpu_topology={values.tpu_topology}: give one such as 4x4")
    total = math.prod(map(int, values.tpu_topology.split("x")))
    if values.nodes * values.tpu_chips != total:
        raise command.InputError(
            f"--tpu_topology={values.tpu_topology} has {total} chips, --nodes={values.nodes} with "
            f"--tpu_chips={values.tpu_chips} {values.nodes * values.tpu_chips}; a slice is used as a whole"
        )
    return {"google.com/tpu": values.tpu_chips}, {
        "cloud.google.com/gke-tpu-accelerator": values.tpu_accelerator,
        "cloud.google.com/gke-tpu-topology": values.tpu_topology,
    }


if __name__ == "__main__":
    command.run(define_flags, launch)
