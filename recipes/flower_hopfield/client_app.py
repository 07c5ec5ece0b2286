"""What each SuperNode runs: the examples stay here, a sketch of them leaves."""

from data import federation

from lightning_plasticity.hopfield.flower import client_app


def examples(client, round, context):
    """Give this client's examples of a round, +-1 `[M, N]`, the same whenever asked."""
    return federation(context.run_config).examples(round, client)


app = client_app(examples)
