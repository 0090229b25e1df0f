//! What callers see of scheduling: codes, deadlines, and how much of the machine is used.

use std::{fs, process::Command};

use sconce_proto::inference::{ModelInferRequest, RepositoryModelLoadRequest};
use tonic::Code;

use crate::{
    harness::{Repo, Server, fp32, refused, request, root, run, sconce, stdout},
    raw::{Raw, framed},
};

mod hanging;
#[cfg(not(feature = "torch"))]
mod queues;

/// RPCs of tonic's services, which do not know deadlines.
const OTHERS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

#[tokio::test]
async fn a_deadline_that_passes_is_answered_as_one_on_every_rpc() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let connection = Raw::connect(&server).await;
    let proto = fs::read_to_string(root().join("proto/grpc_service.proto")).expect("the contract");
    let ours = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    let mut served = 0;
    for rpc in ours.chain(OTHERS) {
        // The message never comes to its end.
        let mut open = connection.begin(rpc, &[("grpc-timeout", "20m")]).await.expect("a stream");
        open.body.send_data(vec![0; 3].into(), false).expect("a part");
        let status = open.finish().await.status();
        if status.code() != Code::Unimplemented {
            assert_eq!(status.code(), Code::DeadlineExceeded, "{rpc}: {status}");
            assert!(status.message().starts_with("Deadline Exceeded: "), "{rpc}: {status}");
            served += 1;
        }
    }
    assert_eq!(served, 14 + OTHERS.len());
    // A watch ends with its caller's deadline, too: it would hold its place on the connection.
    let answer = connection.send(OTHERS[1], &[("grpc-timeout", "20m")], framed(&[])).await;
    assert_eq!(answer.status().code(), Code::DeadlineExceeded, "{}", answer.status());
    for rpc in OTHERS {
        let status = connection.send(rpc, &[("grpc-timeout", "soon")], framed(&[])).await.status();
        assert_eq!(status.code(), Code::InvalidArgument, "{rpc}: {status}");
    }
    connection
        .call("ModelInfer", &echo())
        .await
        .message::<sconce_proto::inference::ModelInferResponse>()
        .expect("an answer");
}

fn echo() -> ModelInferRequest {
    request("echo", &[("x", "FP32", &[1], fp32(&[1.0]))])
}

#[tokio::test]
async fn tritons_codes_are_there_for_those_who_ask_for_them() {
    let repo = Repo::new();
    repo.identity("models/liar/1/model.pt");
    // It gives back what it gets, which is FP32.
    repo.file("models/liar/config.yaml", "outputs: [{name: OUTPUT__0, dtype: INT64, shape: [-1]}]\n");
    let settings = repo.file("settings.yaml", "triton-error-codes: true\n").display().to_string();
    let models = repo.path().join("models");
    let cases: [(&[&str], [Code; 2]); 4] = [
        (&[], [Code::Internal, Code::NotFound]),
        (&["--triton-error-codes=false"], [Code::Internal, Code::NotFound]),
        (&["--triton-error-codes"], [Code::InvalidArgument, Code::Internal]),
        (&["--config", &settings], [Code::InvalidArgument, Code::Internal]),
    ];
    for (arguments, [output, load]) in cases {
        let server = Server::start_with(&models, arguments);
        let sent = request("liar", &[("x", "FP32", &[1], fp32(&[1.0]))]);
        refused(server.infer(sent).await, output, &["returned something that cannot be served"]);
        let nobody = RepositoryModelLoadRequest { model_name: "nobody".to_owned(), ..Default::default() };
        let answer = server.client().await.repository_model_load(nobody).await;
        refused(answer, load, &["failed to load 'nobody', failed to poll from model repository"]);
        // What has Triton's code anyway keeps it.
        refused(server.infer(request("nobody", &[])).await, Code::NotFound, &["is not found"]);
        refused(server.infer(request("liar", &[])).await, Code::InvalidArgument, &["'x'"]);
    }
}

/// What says that this process may use `quota` microseconds of each 100,000, in either version of cgroups.
const LIMITS: [&str; 2] = [
    "echo 0::/pod/box >cgroup; mkdir -p pod/box; touch pod/box/cgroup.controllers
     echo $quota 100000 >pod/cpu.max; echo max 100000 >pod/box/cpu.max",
    "echo 4:cpu,cpuacct:/box >cgroup; mkdir -p cpu,cpuacct/box; touch cpu,cpuacct/box/cgroup.procs
     echo $quota >cpu,cpuacct/box/cpu.cfs_quota_us; echo 100000 >cpu,cpuacct/box/cpu.cfs_period_us",
];

/// The binary where it has such a limit. Only files of a private mount say so: nothing is limited.
fn limited(quota: u32, limit: &str) -> Command {
    let script = format!(
        "quota={quota}; mount -t tmpfs none /sys/fs/cgroup; cd /sys/fs/cgroup; {limit}
         mount --bind cgroup /proc/$$/cgroup; cd /; exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-euc", &script, "sh"]).arg(sconce().get_program());
    command
}

#[test]
fn the_cpu_limit_of_a_container_is_rounded_down_to_cores() {
    let all = cores(&stdout(&run(&["version"])));
    for limit in LIMITS {
        if !limited(1, limit).arg("--version").output().is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: the CPU limit of a container: nothing can be mounted in private here");
            return;
        }
        for (quota, expected) in [(50_000, 1), (100_000, 1), (150_000, 1), (250_000, 2), (100_000_000, all)] {
            let output = limited(quota, limit).arg("version").output().expect("the binary can be run");
            assert_eq!(cores(&stdout(&output)), expected.min(all), "{quota}: {limit}");
        }
        let repo = Repo::new();
        let mut command = limited(50_000, limit);
        command.args(["serve", "--grpc-address", "127.0.0.1:0", "--metrics-address", "off"]);
        let server = Server::launch(command.arg("--model-repository").arg(repo.path()));
        server.wait_for("cores: 1, workers of the CPU: 1,");
    }
}

/// The number in the line `cores: N`.
fn cores(version: &str) -> usize {
    let line = version.lines().find_map(|line| line.strip_prefix("cores: "));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no cores in {version}"))
}
