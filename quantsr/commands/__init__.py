"""The commands of `quantsr`, one module each with ``add_arguments(parser)`` and ``run(args) ->
int``. Other modules, except ``cli``, do not print."""
