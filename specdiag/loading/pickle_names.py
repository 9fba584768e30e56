"""What the global names in a pickle mean for safety: tensors, plain data, code, dangerous calls. No torch."""

from __future__ import annotations

UNKNOWN = "?"

TENSORS = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)
STORAGES = (
    "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexDouble ComplexFloat QInt8 QUInt8 QInt32",
)
DTYPES = (
    "bfloat16 bool complex64 complex128 float16 float32 float64 int8 int16 int32 int64",
    "uint8 uint16 uint32 uint64",
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz qint8 qint32 quint8 per_tensor_affine",
    "per_channel_affine per_tensor_symmetric per_channel_symmetric",
)
PLAIN = frozenset(
    {
        "argparse.Namespace",
        "builtins.bool",
        "builtins.bytes",
        "builtins.dict",
        "builtins.float",
        "builtins.frozenset",
        "builtins.int",
        "builtins.list",
        "builtins.object",
        "builtins.range",
        "builtins.slice",
        "builtins.str",
        "builtins.tuple",
        "collections.defaultdict",
        "collections.deque",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "decimal.Decimal",
        "fractions.Fraction",
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
        "typing.Any",
        "uuid.UUID",
    }
    | {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
)
DANGEROUS_MODULES = (
    "os posix nt subprocess sys shutil socket ssl runpy code codeop pty commands importlib imp pip",
    "ctypes cffi multiprocessing concurrent threading _thread asyncio signal tempfile glob fileinput",
    "urllib http requests httpx aiohttp ftplib smtplib telnetlib paramiko pickle _pickle dill joblib",
    "marshal shelve zipimport pkgutil timeit cProfile profile pdb bdb trace doctest venv ensurepip",
    "operator _operator builtins io _io gc inspect atexit faulthandler site sysconfig platform",
    "cloudpickle webbrowser linecache idlelib distutils setuptools",
)
DANGEROUS = frozenset(
    {
        "functools.reduce",
        "numpy.f2py.crackfortran.myeval",
        "numpy.f2py.crackfortran._eval_length",
        "numpy.testing._private.utils.runstring",
        "numpy.load",
        "numpy.fromfile",
        "numpy.memmap",
        "torch._inductor.codecache.compile_file",
        "torch.hub.load",
        "torch.jit.load",
        "torch.load",
        "torch.save",
        "torch.serialization.load",
        "torch.serialization.save",
        "torch.utils._config_module.load_config",
        "types.CodeType",
        "types.FunctionType",
        "types.MethodType",
        "types.LambdaType",
    }
)

_MODULES = frozenset(" ".join(DANGEROUS_MODULES).split())
_TORCH_NAMES = frozenset(" ".join(DTYPES).split()) | {f"{kind}Storage" for kind in " ".join(STORAGES).split()}


def is_allowed(name: str) -> bool:
    """Whether torch's weights_only loading takes this 'module.name' itself."""
    module, _, leaf = name.rpartition(".")
    if module == "torch.cuda":
        return leaf.endswith("Storage") and leaf in _TORCH_NAMES
    return name in TENSORS or (module == "torch" and leaf in _TORCH_NAMES)


def is_plain(name: str) -> bool:
    """Whether a blocked name only describes plain data, as training scripts put beside their weights."""
    if name in PLAIN:
        return True
    leaf = name.rsplit(".", 1)[-1]
    if name.startswith("numpy.dtypes."):
        return leaf.endswith("DType")
    return name.startswith("omegaconf.") and leaf[:1].isupper() and name.count(".") <= 3


def is_dangerous(name: str) -> bool:
    """Whether a name is known to run commands, touch files or load code; an unreadable one counts."""
    if is_plain(name) or is_allowed(name):
        return False
    # a path is plain data, its methods write and delete
    return UNKNOWN in name or name in DANGEROUS or name.split(".", 1)[0] in _MODULES | {"pathlib"}
