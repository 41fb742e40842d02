"""`pidec demo`: demonstrations, an imperfect base policy, its refinement and the report, in one command."""

from dataclasses import dataclass, field

from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch, display
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.cli.refine import how_to_go_on
from policy_decorator.cli.show import run_table
from policy_decorator.errors import UserError
from policy_decorator.experiments.demo import DemoConfig, demo

ABOUT = """Few and noisy demonstrations, a base policy that half works, and a residual that mends it: everything \
lands in one run folder, with a report to open in the browser."""


@dataclass(frozen=True)
class Options:
    """Options of `pidec demo`."""

    demo: DemoConfig = field(default_factory=DemoConfig)
    """What is shown."""
    quiet: Switch = False
    """No progress on stderr."""
    json: Switch = False
    """Print JSON instead of a table."""


def parse(args: list[str]) -> Options:
    """Raises UserError for numbers out of range."""
    options = parse_options(Options, "demo", ABOUT, args)
    if options.demo.episodes < 1 or options.demo.seed < 0:
        raise UserError("--episodes must be at least 1 and --seed at least 0.")
    return options


def run(options: Options) -> Answer:
    """All of it."""
    out = options.demo.out
    try:
        refined = demo(options.demo, display(options.quiet))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on(out)) from None
    value = refined.summary | {"run": out, "report": out / "report.html"}
    return Answer(value, run_table(refined.summary, out), options.json)
