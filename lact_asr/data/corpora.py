"""Facts about the corpora that `download` knows: where they are, how long, what is in them.

LibriSpeech is https://www.openslr.org/12, Mini LibriSpeech https://www.openslr.org/31, both
CC BY 4.0 (V. Panayotov, G. Chen, D. Povey, S. Khudanpur, ICASSP 2015).

Sources. sha256 of LibriSpeech: torchaudio 2.11, `datasets/librispeech.py`. md5 of Mini LibriSpeech:
the site's md5sum.txt, as pinned by several unrelated public projects. Sizes: Kaldi's
`local/download_and_untar.sh` of the recipes `librispeech` and `mini_librispeech`. Counts: lines of
the transcripts, as icefall counts them.
"""

from dataclasses import dataclass

MIRROR = "https://www.openslr.org/resources"
MIRRORS = (  # each holds 12/NAME.tar.gz and 31/NAME.tar.gz
    MIRROR,
    "https://openslr.trmal.net/resources",
    "https://openslr.elda.org/resources",
    "https://openslr.magicdatatech.com/resources",
)


@dataclass(frozen=True, slots=True)
class Subset:
    """One archive: it unpacks to LibriSpeech/<name>/."""

    name: str
    resource: int  # the number of the corpus at OpenSLR
    checksum: str  # "sha256:<hex>" or "md5:<hex>" of the archive
    size: int  # bytes of the archive; FLAC does not compress, so about as many unpacked
    utterances: int

    def url(self, mirror: str = MIRROR) -> str:
        """Where a mirror keeps the archive."""
        return f"{mirror.rstrip('/')}/{self.resource}/{self.name}.tar.gz"


def _table(*subsets: Subset) -> dict[str, Subset]:
    return {subset.name: subset for subset in subsets}


LIBRISPEECH = _table(
    Subset(
        name="train-clean-100",
        resource=12,
        checksum="sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
        size=6_387_309_499,
        utterances=28_539,
    ),
    Subset(
        name="train-clean-360",
        resource=12,
        checksum="sha256:146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
        size=23_049_477_885,
        utterances=104_014,
    ),
    Subset(
        name="train-other-500",
        resource=12,
        checksum="sha256:ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
        size=30_593_501_606,
        utterances=148_688,
    ),
    Subset(
        name="dev-clean",
        resource=12,
        checksum="sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
        size=337_926_286,
        utterances=2_703,
    ),
    Subset(
        name="dev-other",
        resource=12,
        checksum="sha256:12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
        size=314_305_928,
        utterances=2_864,
    ),
    Subset(
        name="test-clean",
        resource=12,
        checksum="sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
        size=346_663_984,
        utterances=2_620,
    ),
    Subset(
        name="test-other",
        resource=12,
        checksum="sha256:d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
        size=328_757_843,
        utterances=2_939,
    ),
)

MINI_LIBRISPEECH = _table(
    Subset(
        name="train-clean-5",
        resource=31,
        checksum="md5:5df7d4e78065366204ca6845bb08f490",
        size=332_954_390,
        utterances=1_519,
    ),
    Subset(
        name="dev-clean-2",
        resource=31,
        checksum="md5:6d7ab67ac6a1d2c993d050e16d61080d",
        size=126_046_265,
        utterances=1_089,
    ),
)

CORPORA = {"librispeech": LIBRISPEECH, "mini_librispeech": MINI_LIBRISPEECH}
