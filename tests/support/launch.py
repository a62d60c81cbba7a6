"""The command that launches several processes on this machine."""

import sys
from pathlib import Path

LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--main_process_port", "0"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes"]
