"""Images to decode in every encoding that tests ask for, and how they should look."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from classifier.decoding.decode import Eligibility, decode
from classifier.errors import NotScorable
from classifier.reasons import Reason
from tests.conftest import radiograph

RAMP = np.add.outer(np.arange(40) * 95, np.arange(36) * 2).astype("<u2")  # 12 bits
COLOUR = np.random.default_rng(0).integers(0, 256, (32, 32, 3), "u1")
# RAMP as encoders other than the decoders under test wrote it
CODESTREAMS = {
    "JPEGLossless": (
        "|JeWF01!$>Nk#wx0RR9200961|HA+a3;-wqBmn^t0RO}Q7XSeP0RaF20000000000000070u2A!00;pA00aO4=l=lKwXJJf*"
        "0rr`TGq9#Yg*Q|t!rA=wO;@L000&600001UjP6A02S~60004B0000074QH600CbB0000L@Bjb+0bc+B000&600001UjP6A02"
        "S~60004B0000074QH600CbB0000L@Bjb+0bc+B000&600001UjP6A02S~60004B0000074QH600CbB0000L@Bjb+0bc+B000"
        "&600001UjP6A02S~60004B0000074QH600CbB0000L@Bjb+0bc+B000&600001UjP6A02S~60004B0000074QH600CbB0000"
        "V|Je"
    ),
    "JPEGLosslessSV1": (
        "|JeWF01!$>Nk#wx0RR9200961|HA+a3;-wqBmn^t0RO}Q761VO0RR910000000000000694FB2y2mt{A0RRBc{*p-~l1U_zN"
        "hFd<B$BVBl1U_zNhFd<B$7!atLY??NhFd<B$7!al1VE1NhFd<B$7!al1U_zO1_dwB$7!al1U_zNhFf5q>@P_l1U_zNhFd<B&"
        "+Epl1U_zNhFd<B$7!g`bi{`NhFd<B$7!al1jdkNhFd<B$7!al1U_zucVSmB$7!al1U_zNhGW3B$7!al1U_zNhFd<D*8zzl1U"
        "_zNhFd<B$7(Ll1U_zNhFd<B$7!alCPwaNhFd<B$7!al1U`1=_Ha#B$7!al1U_zNh<nDB$7!al1U_zNhFd=zLH5Kl1U_zNhFd"
        "<B$BVBl1U_zNhFd<B$7!atLY??NhFd<B$7!al1VE1NhFd<B$7!al1U_zO1_dwB$7!al1U_zNhFf5q>@P_l1U_zNhFd<B&+Ep"
        "l1U_zNhFd<B$7!g`bi{`NhFd<B$7!al1jdkNhFd<B$7!al1U_zucVSmB$7!al1U_zNhGW3B$7!al1U_zNhFd<D*8zzl1U_zN"
        "hFd<B$7(Ll1U_zNhFd<B$7!alCPwaNhFd<B$7!al1U`1=_Ha#B$7!al1U_zNh<nDB$7!al1U_zNhFd=zLH5Kl1U_zNhFd<B$"
        "BVBl1U_zNhFd<B$7!atLY??NhFd<B$7!al1VE1NhFd<B$7!al1U_zO1_dwB$7!al1U_zNhFf5q>@P_l1U_zNhFd<B&+Epl1U"
        "_zNhFd<B$7!g`bi{`NhFd<B$7!al1u;D"
    ),
    "JPEGExtended12Bit": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40s#R50RaL50RaL60s;a80s;a90|WyD0|NsB0s{mC0|W#F1"
        "Ox&D1qB2I1q1{H1pmPR3k(1#03-nc5di<h02crO0RaI30000000000000082MrGY!~h`>000I80R;d6000000000000s*vGe"
        "%M40t6&uai;&;00;pA002J#;-<?;o<`EKNz@Ppq)#JhSfuI*0@5duw5(Ef1OaIi$l6vZI)$^KMDw=b(!M9xh-&H<kvxs1Vw0"
        "#K3rL<u(y>X@5Cx=9BWYNq>IeeTCy}(QQgsVwK#AvV!KHjpuMpMLEh2dvO2sEoKo*fajiq9fs2~eSo<`EKNz@Ppq)#JhSfuI"
        "}&Vduo+k;B@pI#xWs9HqwHkFD_pnxqRc^gW_Cs05Zkvxs1Vw0#K3rL<u(y>X@Eu8`<owo*+@jkpmS5UNx<ZUYyok0LvMDjM3"
        "icX+_Eh2dvO2sEoKo*fajiq9fs9QP&Pdjc6E8=~4hyU3"
    ),
    "HTJ2KLossless": (
        "|4;u>04YEK0000a0000e00000000000000a0000e0000000000009pH0sl|{2mk^A000XAQUDA90ssL30t5s=0smY83LuD(k"
        "dTOoi2q~&7XSfIaAj^vP)HzFWpW@eE;2SQGcNy-015yA0003;00IA#zyL3@!2f>-{qO&G`QQI@{OA8Q{_p=7|8@Ts|8xHo|8"
        "f5kzwckjf6!mt|7SnAzvu7m-}!U<bN<@?n?JU{=5Otv`BQsizS90dKZ$>!zli@&AH?71_weueIsAEk4gVcKhQH2l;hpnR_>2"
        "2y{looa{ouY>|2H43-`n@<@AkR+xqYqvZ6B*!+qLQ+^fvhm`ZD<gy-R*Tuaf^yH_7kkMe_G~kNkXIBln)O$PfQszgd5OuV1X"
        "cf7h?pUw`Y@>n@;u2mr=H05QJ-zyKA{00pcFAP@-r@9XvY{eDY%0IF40RaI40RaO5m0}+g1d-gGb?7aZM04*2*1=4^30Py?&"
        "6!i4;^z`)f^zwcHygVL{$K&yMJRXn7<MDXB|9gN#*n|haVh|qvh(LSxApz{Q0sq+"
    ),
    "HTJ2K": (
        "|4;u>04YEK0000a0000e00000000000000a0000e0000000000009pH0sl|{2mk^A001TbQUDA90ssL30t5s=0RLP75h8cyX"
        "f<dxXn0^6U>a|~|6~9c00B>MWo}APNFY{aav(4+GBz$VF8`1K3IG5A008a)0soW00ew^*;Q4QW=AQwU{{@izE5Pxe0L4E74F"
        "3lp_&0#xKlc+q?nnIFKYZIa{Ms*k+9&+kAAH#t{MZlttWWt^Kjp6;<*okYtKQ_PzT~H#<fVS(qh93oUD@aRWXE@8zxQLecVn"
        ";jVyAavpZ8&xcVXZ3G_UE=Jk!q{)6M+S%iPk*ywb;<(#3qz!~75bUcXs?f3IJxzkk=S)?a_?*Xu5Tyv74sF@Vs&0iXeG00M*"
        "zG9+Y3$dHgh{(plX@>8eDP2aw?>OKIV0?+^g0QmoVhu`nt@89p=?7aa0*#"
    ),
}


def image_of(values: np.ndarray[Any, Any], bits: int = 12, **tags: Any) -> Dataset:
    """Return a plain CR image with these stored values and nothing of the grayscale pipeline."""
    ds = radiograph("CR", bits=bits, **tags)
    ds.Rows, ds.Columns = values.shape[:2]
    ds.SamplesPerPixel = 1 if values.ndim == 2 else values.shape[2]
    ds.BitsAllocated, ds.PixelRepresentation = values.itemsize * 8, int(values.dtype.kind == "i")
    ds.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    return ds


def compressed(frame: bytes, syntax: UID, values: np.ndarray[Any, Any] = RAMP, bits: int = 12) -> Dataset:
    ds = image_of(values, bits)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return ds


def encoded(ds: Dataset) -> io.BytesIO:
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file


def put(ds: Dataset, keyword: str, vr: str, value: Any) -> None:
    """Set an attribute to what no careful writer would write."""
    ds.add(DataElement(keyword, vr, value, validation_mode=config.IGNORE))


def lut(entries: np.ndarray[Any, Any], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.tobytes())
    return item


def picture(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def refused(source: Any, rules: Eligibility | None = None) -> Reason:
    with pytest.raises(NotScorable) as caught:
        decode(source, rules)
    return caught.value.reason


def stretched(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    low, high = float(values.min()), float(values.max())
    grey: np.ndarray[Any, Any] = (values - low) / (high - low)
    return grey
