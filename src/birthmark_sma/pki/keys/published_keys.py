"""List public keys whose private key is published.

Each key is the SHA-256 of its DER SubjectPublicKeyInfo, with the place where its private key is
published. Anyone can impersonate a device that uses a key copied from an example.
"""

_TRIVIAL = {
    "5cd252fb0ce8932436faf8ccd1040981b89ee4ad6b9fe9e2a2b7e71aacb27cd3": "private key 1 of P-256",
    "3fda76216227ff687422fb555d659338c62577cbc3e503dddc34b7f6f1abbde5": "private key -1 of P-256",
    "29f8fe74f38c49d49810cec736a26732a30bff2e64827b709a1c63340d4f7181": "private key 1 of P-384",
    "4257b2ffc3579064575e20fedb0974bbfc3c4438b09e668e85cb51a7ac7a4bd7": "private key -1 of P-384",
    "4ae255ce42a1d27516e3f646e675ef4ffea73a17967ee1f5495c01c28aeed460": "the base point",
    "b9cea17edb21dc55d8c0d374166998d4ed3860adb32bb75be70c26b9ce9b3eb0": "the base point, negated",
    "2caf8de4332a6aee8d0607656fe2a771c0aa7411187e5a4814e2d07b46949291": "the base point",
}
"""Keys with the private scalar 1 or -1. Every X25519 agreement with the base point is public."""

_RFC_EXAMPLES = {
    "5a7a78cca4a0f420d9bc62bb669c3c2759e39f723d3ae10dcbe0f0815a07ecd4": "RFC 6979, A.2.5",
    "2f95601fa82060b909bfc6b979dbd303d34d34e0afb27ea496beac362f242a4b": "RFC 6979, A.2.6",
    "6fd13c2435a361e7c588cd17f55f5ad3df0177a66c1727a6a200845f4d7ab88c": "RFC 7515, A.2",
    "2bd1bb0c44a897c30a7aa0991cde38d8062fe441de50da0f46825344f602e827": "RFC 7515, A.3",
    "bf0a7a74f9afb6edda89ebabe824241bfdb281db2da50daae9973c6cbe99fe95": "RFC 7516, A.1",
    "c1de70b4f5ae92a53b86f6a7175e3b9b88b2f810d55aba53aca334c59fc2ea60": "RFC 7516, A.2",
    "51b944cdfa544d4c3273aa6bf350625a7dd53bbb6a71723274f538b19a207760": "RFC 7517, A.2, EC",
    "ad32320cf6c596d884b05381ba573aba8ddd5749b4de8f4a23a79f9a89ddaeb2": "RFC 7517, A.2, RSA",
    "a4109e6bac8043ec089a57064aeb14d0b5fd5025b95810541c52a168aa565344": "RFC 7517, C.1",
    "36ada7a1c77e32830848b347126d4da6de59f1c30536c53750dc9ec8931349fb": "RFC 7518, C, Alice",
    "19818232a1dd313f53b5d5b95ae3d32570e178ba58d6d5906989fc299b00e32f": "RFC 7518, C, Bob",
    "627771f25da426d1f9ae315e42106d700b1529850eee1592acf39603959d795d": "RFC 7520, 3.4",
    "291c5293e030452a599851a7c7298f3f16c3ff1bdfafcb598927f2631f9fa641": "RFC 7748, 6.1, Alice",
    "e80c4532355b04160b97b1bee8a3e13cc7369c22a786afdfe63b1f7acbc34b52": "RFC 7748 and RFC 8037",
    "06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9": "RFC 8032 and RFC 8037",
    "deb2ded39dc26fce0e6085b6fc34bf6b5941913bbfe2ea614113cff9e004c170": "RFC 8032, 7.1, test 2",
    "8d39ba50abe50f77b6bb8ae7b6927aff7ffbeba35ad2837c0e51e82bcbcc60d5": "RFC 8032, 7.1, test 3",
    "e4f982b51ad0bdd87be820b259fe80337ef636e72b9fa7a8867a6949eb610fd6": "RFC 8032, 7.1, test 1024",
    "e77db4a9572e9f6552c22bc751d5499ad218a73bdf7e15dc6ea0fc69246a44de": "RFC 8032, 7.1, SHA(abc)",
    "a1e9156054e04fac899ae9f275132cdc07a5dbc4ea2c2ad3a1ffc6e0d253681f": "RFC 8410, 10.1",
    "c73eecd318bd3813f2402a660d8a90010ca35d609d19377d5ee7af200713229f": "RFC 9421, B.1.1",
    "72859cbaf21a0b398b1f25712bbed148b1d85a0c6b824176eb306405caa6f0b2": "RFC 9421, B.1.2",
    "55f96361b78cbb84f1fc604b0718e82bd91abb46d8fc25ae871b35fbbf8b7974": "RFC 9421, B.1.3",
    "34571606cb7a0d71be377e671ddcccae2a169ed7733598214129231cd30c4a3c": "RFC 9421, B.1.4",
    "8fb6bad671cfe698393c453357da61b56d757ab8c0f3fb9c87f2849e63131878": "RFC 9500, 2.1",
    "96465ea5dc9bb2da7b351d808a7196e5761f2412a5040131c68d719aaba28fb9": "RFC 9500, 2.1",
    "b2b04340cfaee616ec9c2c62d261b208e54bb197498df52e8cadede23ac0ba5e": "RFC 9500, 2.3",
    "c4c10105a0be0ed4dd3354428dc38a9bfee64da141ce16e75c94eda272f9dd3a": "RFC 9500, 2.3",
}

_VECTORS = (
    "6e471ef51f7accc5f2a82a60cbf5cdb8168ef262c298b54c8f274a9b358d9826",
    "0807dbc8696e2ce6215cb109191193471fb2d4a8c0df737502082a8ef385ffe8",
    "85d047b68621c0cb1eb12d6e960eb77a3698fd6dc7ff452afc686fb21168d10d",
    "9435b8ed6657b9a70ea6f977acd410db2f88226222a28c93b635c15f6ecdb03f",
    "ea3ee009d7f85235271ca0a0f6fe72225d72a078a248657bdf1065c857322182",
    "c17f2030a27b2ab2bfcf8b7ee0925e08528f57952948cb74e6f8192259483712",
    "131c6e54dfe8c23644c83c22f998f9b118a5f8ea3ac36d60192f77e511fcfb1d",
    "7ea0e0397c5a3a903f240e757dafed11c37d2590d9fbc9abc6d6183701fa663b",
    "e2c320c59ae2f997033de6a00b83678c3d9b6cc45d030a5f70f9d6cf194be2da",
    "2b5fb2ba1b6e0eba35b2e424e429f09e1134d40cc106c98aac36397d34b5e601",
    "21423492594a331427911829727e2aa0b724ea2690bc34c30b703bd81d745535",
    "d4a65bf379dbc7726cc311d2d7108bc515626717c079b7b71d20781cda491fd9",
    "32897372d5c563fb57fe65a44e1d8397e9af5e295d296b6ec2d64dbddce806b8",
    "d368c39271fd0cf5dc5f8b018a4c45cede1420d84859cb718c89102e318cebe0",
    "ace5f16fdaa01d8a11c0ee45c5d2b5f9ec9a7b4aeeebeec8223071dae86289a3",
    "a244b75df2360bfc050da44c74a36b00e58d20f372589746e2912b5dbe10e4b7",
    "60f673908a3bfc976a536a2819929de10352022b23034234705355e68dc3cec5",
    "e4ec6f91df92ced78ebc90024e4419f796fd190ae8798d6386419ef3e13570e8",
    "7637eaa37ce329a20582b82d3d84d58b0085fac8ffa2bc55e1a17427bc1627d6",
    "18d5d77f6342a6feb6093c64b489b169e1379880e6e9a888a7dbb9a526dd6d6f",
    "f30dcdee5c9b00dee8abc67789332a7c5d5dcd74756ec3ffea99d2eeb496d6c3",
    "82f8f4b51f2db428fa365d9ef210428a09d0a94b3a14305628d4734623cb1e70",
    "b13e42ebc1c88cfb4dbdbe6e15b3d7e8baae4924ffca11c91667ea1f1f37309b",
    "fe2cd1d548c1dc65d0f16deeeb245fdddeb559d0fad9acdb0f0bc75464450e02",
    "f0c2630d684d8293602aa8a19f7e1f2705b46c11d344bc0e57dcb4f224e89a3b",
    "2283d6bd41838d81ef7cb998f0a23c9067d8ad0897c401e1978f14c322116d94",
    "2713d9b9ca3b3ac15bfd09f285c413c9400048e78cfea9b9eb089163c91272fd",
    "c7262819099ddd173444a7ba165334de2b42e880482b7273cb47519d5224f425",
    "fdf1c8d144b4e78c50a36db481467abeb9de8c4f5e4f98dfecac980ab38c59f8",
    "383b5e2d848af6a6c700439137a2e67753e63f80096a1e00aa9c131db559acb9",
)
"""The keys that vectors/generator/seeded_keys.py derives from labels. A test keeps it complete."""

PUBLISHED_KEYS = {
    bytes.fromhex(fingerprint): place
    for fingerprint, place in (
        _TRIVIAL | _RFC_EXAMPLES | dict.fromkeys(_VECTORS, "this project's test vectors")
    ).items()
}
"""The place where a key's private half is published, by the key's fingerprint."""
