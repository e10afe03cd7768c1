"""What Kubernetes and KubeRay 1.7 accept of what `cluster/kuberay` uses; any other key is an error here.

Written after KubeRay's API reference (apis/ray/v1) and Kubernetes 1.31's: a field that is not listed may well
exist, and is to be looked up there and added when it is needed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

Text = dict[str, str]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]


class Strict(BaseModel):
    """Knows all its keys."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, strict=True)


class Meta(Strict):
    name: str | None = Field(None, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    generate_name: str | None = None
    namespace: str | None = None
    labels: Text = {}
    annotations: Text = {}


class Resources(Strict):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class KeyRef(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secret_key_ref: KeyRef


class Env(Strict):
    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class Capabilities(Strict):
    drop: list[str]


class ContainerSecurity(Strict):
    allow_privilege_escalation: Literal[False]
    read_only_root_filesystem: bool | None = None
    capabilities: Capabilities


class Port(Strict):
    container_port: int
    name: str = Field(max_length=15)


class Mount(Strict):
    name: str
    mount_path: str
    read_only: bool | None = None


class Container(Strict):
    name: str
    image: str
    command: list[str] | None = None
    security_context: ContainerSecurity
    env: list[Env] = []
    ports: list[Port] = []
    resources: Resources
    volume_mounts: list[Mount] = []


class Seccomp(Strict):
    type: Literal["RuntimeDefault"]


class PodSecurity(Strict):
    run_as_non_root: Literal[True]
    run_as_user: int = Field(ge=1)
    fs_group: int | None = None
    seccomp_profile: Seccomp


class Claim(Strict):
    claim_name: str


class EmptyDir(Strict):
    medium: Literal["Memory"] | None = None
    size_limit: Quantity


class Volume(Strict):
    name: str
    persistent_volume_claim: Claim | None = None
    empty_dir: EmptyDir | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    service_account_name: str | None = None
    automount_service_account_token: bool
    security_context: PodSecurity
    restart_policy: Literal["Never", "Always", "OnFailure"] | None = None
    node_selector: Text = {}
    tolerations: list[Toleration] = []
    containers: list[Container]
    volumes: list[Volume] = []


class PodTemplate(Strict):
    metadata: Meta = Meta()
    spec: PodSpec


class Head(Strict):
    ray_start_params: Text
    template: PodTemplate
    service_type: str | None = None


class Workers(Strict):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    num_of_hosts: int | None = None
    idle_timeout_seconds: int | None = None
    ray_start_params: Text
    template: PodTemplate


class Auth(Strict):
    mode: Literal["token"]
    secret_name: str


class RedisPassword(Strict):
    value_from: ValueFrom


class FaultTolerance(Strict):
    redis_address: str
    redis_password: RedisPassword
    external_storage_namespace: str | None = None


class Autoscaler(Strict):
    version: Literal["v2"]
    idle_timeout_seconds: int
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"]
    resources: Resources
    security_context: ContainerSecurity


class RayClusterSpec(Strict):
    ray_version: str
    auth_options: Auth
    gcs_fault_tolerance_options: FaultTolerance
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: Autoscaler | None = None
    head_group_spec: Head
    worker_group_specs: list[Workers]


class RayCluster(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Meta
    spec: RayClusterSpec


class Upgrade(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class RayServiceSpec(Strict):
    upgrade_strategy: Upgrade
    exclude_head_pod_from_serve_svc: bool
    serve_config_v2: str = Field(alias="serveConfigV2")
    ray_cluster_config: RayClusterSpec


class RayService(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Meta
    spec: RayServiceSpec


class RayJobSpec(Strict):
    entrypoint: str
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int
    active_deadline_seconds: int
    backoff_limit: int
    submission_mode: Literal["K8sJobMode", "HTTPMode"]
    submitter_pod_template: PodTemplate
    ray_cluster_spec: RayClusterSpec


class RayJob(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Meta
    spec: RayJobSpec


class Selector(Strict):
    match_labels: Text = {}


class IpBlock(Strict):
    cidr: str = Field(pattern=r"^\d+\.\d+\.\d+\.\d+/\d+$")


class Peer(Strict):
    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None
    ip_block: IpBlock | None = None


class PolicyPort(Strict):
    protocol: Literal["TCP", "UDP"]
    port: int


class Ingress(Strict):
    from_: list[Peer] = Field([], alias="from")
    ports: list[PolicyPort] = []


class Egress(Strict):
    to: list[Peer] = []
    ports: list[PolicyPort] = []


class PolicySpec(Strict):
    pod_selector: Selector
    policy_types: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress] = []
    egress: list[Egress] = []


class NetworkPolicy(Strict):
    api_version: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Meta
    spec: PolicySpec


class ClaimSpec(Strict):
    access_modes: list[Literal["ReadWriteOnce", "ReadWriteMany"]]
    resources: Resources


class PersistentVolumeClaim(Strict):
    api_version: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Meta
    spec: ClaimSpec


class Namespace(Strict):
    api_version: Literal["v1"]
    kind: Literal["Namespace"]
    metadata: Meta


class ServiceAccount(Strict):
    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]
    metadata: Meta
    automount_service_account_token: bool | None = None


class Rule(Strict):
    api_groups: list[str]
    resources: list[str]
    verbs: list[Literal["get", "list", "watch", "patch", "create", "update", "delete"]]


class Role(Strict):
    api_version: Literal["rbac.authorization.k8s.io/v1"]
    kind: Literal["Role"]
    metadata: Meta
    rules: list[Rule]


class Subject(Strict):
    kind: Literal["ServiceAccount"]
    name: str
    namespace: str


class RoleRef(Strict):
    api_group: Literal["rbac.authorization.k8s.io"]
    kind: Literal["Role"]
    name: str


class RoleBinding(Strict):
    api_version: Literal["rbac.authorization.k8s.io/v1"]
    kind: Literal["RoleBinding"]
    metadata: Meta
    subjects: list[Subject]
    role_ref: RoleRef


class ServicePort(Strict):
    name: str
    port: int
    target_port: int


class ServiceSpec(Strict):
    selector: Text
    ports: list[ServicePort]


class Service(Strict):
    api_version: Literal["v1"]
    kind: Literal["Service"]
    metadata: Meta
    spec: ServiceSpec


class Strategy(Strict):
    type: Literal["Recreate", "RollingUpdate"]


class DeploymentSpec(Strict):
    replicas: int
    strategy: Strategy
    selector: Selector
    template: PodTemplate


class Deployment(Strict):
    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]
    metadata: Meta
    spec: DeploymentSpec


class Kustomization(Strict):
    api_version: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    namespace: str
    resources: list[str]


Anything = (
    RayCluster
    | RayService
    | RayJob
    | NetworkPolicy
    | PersistentVolumeClaim
    | Namespace
    | ServiceAccount
    | Role
    | RoleBinding
    | Service
    | Deployment
    | Kustomization
)
_ADAPTER: TypeAdapter[Anything] = TypeAdapter(Annotated[Anything, Field(discriminator="kind")])


def read(document: Any) -> Anything:
    """One document of a YAML file.

    Raises:
        pydantic.ValidationError: a key is unknown or missing, or a value is out of range.
    """
    return _ADAPTER.validate_python(document)
