// The Birthmark protocol in Kotlin 2, for the JVM of JDK 17 or later, without libraries. Copy this file,
// and Json.java of the checker in Java.
//
// What is refused is a GeneralSecurityException or an IllegalArgumentException.

import java.math.BigInteger
import java.net.URLDecoder
import java.net.URLEncoder
import java.nio.ByteBuffer
import java.security.GeneralSecurityException
import java.security.Key
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.PrivateKey
import java.security.PublicKey
import java.security.Signature
import java.security.cert.CertPathValidator
import java.security.cert.CertificateFactory
import java.security.cert.PKIXParameters
import java.security.cert.TrustAnchor
import java.security.cert.X509Certificate
import java.security.interfaces.ECKey
import java.security.interfaces.ECPrivateKey
import java.security.interfaces.RSAKey
import java.security.spec.ECPoint
import java.security.spec.ECPublicKeySpec
import java.security.spec.MGF1ParameterSpec
import java.security.spec.X509EncodedKeySpec
import java.time.DateTimeException
import java.time.Instant
import java.time.LocalDateTime
import java.time.ZoneOffset
import java.util.Base64
import java.util.Date
import java.util.HexFormat
import javax.crypto.Cipher
import javax.crypto.KeyAgreement
import javax.crypto.Mac
import javax.crypto.spec.GCMParameterSpec
import javax.crypto.spec.OAEPParameterSpec
import javax.crypto.spec.PSource
import javax.crypto.spec.SecretKeySpec

typealias Fields = Map<String, Any?>

private val HEX: HexFormat = HexFormat.of()

fun hex(bytes: ByteArray): String = HEX.formatHex(bytes)

fun bytes(hex: String): ByteArray = HEX.parseHex(hex)

private fun bytes(hex: String, size: Int): ByteArray {
    require(hex.length == 2 * size) { "not $size bytes in hex" }
    return bytes(hex)
}

// --- keys and camera tokens

data class CameraToken(
    val encryptedNucHash: String,
    val tableId: Long,
    val keyIndex: Long,
    val nonce: String,
)

private val SALT = "Birthmark".toByteArray()

/** HKDF-SHA256, 32 bytes long (RFC 5869). */
fun deriveKey(
    masterKey: ByteArray,
    keyIndex: Long,
    salt: ByteArray = SALT,
    infoSuffix: ByteArray = ByteArray(0),
): ByteArray {
    // A missing salt is 32 zeros (section 2.2); the JDK takes no empty key.
    val pseudorandomKey = hmac(salt.ifEmpty { ByteArray(32) }, masterKey)
    val index = ByteBuffer.allocate(4).putInt(keyIndex.toInt()).array()
    return hmac(pseudorandomKey, index + infoSuffix + 1)
}

private fun ByteArray.ifEmpty(other: () -> ByteArray) = if (isEmpty()) other() else this

private fun hmac(key: ByteArray, message: ByteArray): ByteArray =
    Mac.getInstance("HmacSHA256").run {
        init(SecretKeySpec(key, "HmacSHA256"))
        doFinal(message)
    }

private fun gcm(mode: Int, key: ByteArray, nonce: ByteArray): Cipher =
    Cipher.getInstance("AES/GCM/NoPadding").apply {
        init(mode, SecretKeySpec(key, "AES"), GCMParameterSpec(128, nonce))
    }

/** Makes a camera token. The nonce is 12 fresh random bytes, never used twice. */
fun seal(
    nucHash: ByteArray,
    masterKey: ByteArray,
    tableId: Long,
    keyIndex: Long,
    nonce: ByteArray,
): CameraToken {
    val sealed = gcm(Cipher.ENCRYPT_MODE, deriveKey(masterKey, keyIndex), nonce).doFinal(nucHash)
    return CameraToken(hex(sealed), tableId, keyIndex, hex(nonce))
}

/** Returns the NUC hash inside a camera token. */
fun open(token: CameraToken, masterKey: ByteArray, keysPerTable: Long = 1_000): ByteArray {
    val sealed = bytes(token.encryptedNucHash, 48)
    val nonce = bytes(token.nonce, 12)
    require(token.keyIndex in 0..<keysPerTable) { "no such key" }
    return gcm(Cipher.DECRYPT_MODE, deriveKey(masterKey, token.keyIndex), nonce).doFinal(sealed)
}

// --- secrets that come sealed: compact JWE, ECDH-ES+A256KW or RSA-OAEP-256, and A256GCM

private const val SEALING = "ECDH-ES+A256KW"
private val HEADER = setOf("alg", "enc", "epk", "cty")
private val SECRETS = setOf("device_serial", "certificate_sha256", "nuc_hash", "table_keys")

/** Returns what is sealed (RFC 7516, section 5.2; RFC 7518, sections 4.3 and 4.6), read strictly. */
fun openSecrets(jwe: String, key: PrivateKey): Fields {
    val parts = jwe.split('.')
    require(parts.size == 5) { "not compact JWE" }
    val header = fields(Json.parse(fromBase64url(parts[0])))
    val (wrapped, nonce, text, tag) = parts.drop(1).map(::fromBase64url)
    val rsa = key as? RSAKey // the kind of the key alone decides
    val algorithm = if (rsa == null) SEALING else "RSA-OAEP-256"
    require(header["alg"] == algorithm && header["enc"] == "A256GCM") { "no such way of sealing" }
    require(("epk" in header) == (rsa == null)) { "epk is for agreement alone" }
    // Nothing more: no zip, no crit, no party information.
    require(header.keys - HEADER == emptySet<String>() && header.getOrDefault("cty", "json") == "json") { "more" }
    require(wrapped.size == if (rsa == null) 40 else rsa.modulus.bitLength() / 8) { "no such length" }
    require(nonce.size == 12 && tag.size == 16) { "no such lengths" }
    val contentKey = if (rsa == null) unwrap(key, fields(header["epk"]), wrapped) else decrypt(key, wrapped)
    val cipher = gcm(Cipher.DECRYPT_MODE, contentKey, nonce)
    cipher.updateAAD(parts[0].toByteArray())
    return fields(Json.parse(cipher.doFinal(text + tag)))
}

private fun unwrap(key: PrivateKey, epk: Fields, wrapped: ByteArray): ByteArray =
    Cipher.getInstance("AESWrap").run { // RFC 3394
        init(Cipher.UNWRAP_MODE, SecretKeySpec(concatKdf(agree(key, epk)), "AES"))
        unwrap(wrapped, "AES", Cipher.SECRET_KEY).encoded
    }

private fun decrypt(key: PrivateKey, encrypted: ByteArray): ByteArray =
    Cipher.getInstance("RSA/ECB/OAEPWithSHA-256AndMGF1Padding").run {
        // Unless told, the JDK has SHA-1 in MGF1.
        val sha256 = MGF1ParameterSpec.SHA256
        init(Cipher.DECRYPT_MODE, key, OAEPParameterSpec("SHA-256", "MGF1", sha256, PSource.PSpecified.DEFAULT))
        doFinal(encrypted).also { require(it.size == 32) { "no such length" } }
    }

private fun agree(key: PrivateKey, epk: Fields): ByteArray {
    val x = fromBase64url(text(epk, "x"))
    val algorithm: String
    val point: PublicKey
    val bits = (key as? ECPrivateKey)?.params?.order?.bitLength()
    val expected = if (bits == null) mapOf("kty" to "OKP", "crv" to "X25519") else mapOf("kty" to "EC", "crv" to "P-$bits")
    val coordinates = if (bits == null) setOf("x") else setOf("x", "y")
    require(epk - coordinates == expected && epk.keys.containsAll(coordinates)) { "no such point" }
    require(coordinates.all { fromBase64url(text(epk, it)).size == ((bits ?: 255) + 7) / 8 }) { "no such lengths" }
    if (key is ECPrivateKey) {
        algorithm = "ECDH"
        val w = ECPoint(BigInteger(1, x), BigInteger(1, fromBase64url(text(epk, "y"))))
        point = KeyFactory.getInstance("EC").generatePublic(ECPublicKeySpec(w, key.params))
    } else {
        algorithm = "X25519"
        val der = X509EncodedKeySpec(bytes("302a300506032b656e032100") + x)
        point = KeyFactory.getInstance("X25519").generatePublic(der)
    }
    return KeyAgreement.getInstance(algorithm).run {
        init(key)
        doPhase(point, true) // refuses what is not on the curve
        generateSecret()
    }
}

/** One round is enough for 32 bytes. No party is named; 256 is the size of the key in bits. */
private fun concatKdf(shared: ByteArray): ByteArray {
    val message = ByteBuffer.allocate(4 + shared.size + 4 + SEALING.length + 8 + 4)
    message.putInt(1).put(shared).putInt(SEALING.length).put(SEALING.toByteArray())
    message.putLong(0).putInt(256)
    return MessageDigest.getInstance("SHA-256").digest(message.array())
}

private fun fromBase64url(text: String): ByteArray {
    val decoded = Base64.getUrlDecoder().decode(text) // which takes padding, and loose bits
    val again = Base64.getUrlEncoder().withoutPadding().encodeToString(decoded)
    require(again == text) { "not base64url" }
    return decoded
}

/** What a device asked for, and what it trusts. */
class Asked(
    val deviceSerial: String,
    val deviceKey: PublicKey,
    val recipientKey: PrivateKey,
    val root: String,
)

/** Returns the secrets in an answer to provisioning, if all of it is for this device. */
fun openResponse(response: Fields, asked: Asked, now: Instant): Fields {
    val chain = listOf(text(response, "device_certificate")) + texts(response["certificate_chain"])
    require(
        chain.size == 3 && verifyChain(chain.take(2), asked.root, now) == asked.deviceSerial &&
            certificate(chain[0]).publicKey == asked.deviceKey &&
            certificate(chain[2]) == certificate(asked.root),
    ) { "the certificates are another's" }
    val secrets = openSecrets(text(response, "sealed_secrets"), asked.recipientKey)
    val digest = MessageDigest.getInstance("SHA-256").digest(certificate(chain[0]).encoded)
    require(
        secrets.keys == SECRETS && secrets["device_serial"] == asked.deviceSerial &&
            secrets["certificate_sha256"] == hex(digest),
    ) { "the secrets of another certificate" }
    val keys = fields(secrets["table_keys"])
    val tables = items(response["table_assignments"])
    require(tables.size == 3 && keys.size == 3 && tables.map { "$it" }.toSet() == keys.keys) {
        "not the keys of its three tables"
    }
    bytes(text(secrets, "nuc_hash"), 32)
    keys.keys.forEach { bytes(text(keys, it), 32) }
    return secrets
}

// --- certificates

private const val DEVICE = "urn:birthmark:device:"
private const val CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
private const val URI = 6

/** Returns the device serial of a chain (device first) that leads to the pinned root. */
fun verifyChain(chain: List<String>, root: String, now: Instant): String =
    verifyPath(chain.map(::certificate), root, now)

private fun verifyPath(chain: List<X509Certificate>, root: String, now: Instant): String {
    val pinned = certificate(root)
    val path = chain.filter { it != pinned } // a root that is sent along proves nothing
    val parameters = PKIXParameters(setOf(TrustAnchor(pinned, null)))
    parameters.isRevocationEnabled = false // ask the CRL apart
    parameters.date = Date.from(now)
    val certPath = CertificateFactory.getInstance("X.509").generateCertPath(path)
    CertPathValidator.getInstance("PKIX").validate(certPath, parameters)
    return deviceSerial(path.first())
}

private fun deviceSerial(leaf: X509Certificate): String {
    val maySign = leaf.keyUsage?.get(0) ?: false
    val isDevice = leaf.basicConstraints == -1 && CLIENT_AUTH in leaf.extendedKeyUsage.orEmpty()
    require(maySign && isDevice) { "not a device's certificate" }
    signatureAlgorithm(leaf.publicKey)
    val urn = leaf.subjectAlternativeNames.orEmpty()
        .filter { it[0] == URI && "${it[1]}".startsWith(DEVICE) }
        .map { it[1].toString() }.singleOrNull()
    val serial = URLDecoder.decode(requireNotNull(urn) { "it names no device" }.removePrefix(DEVICE), Charsets.UTF_8)
    require(serial.isNotEmpty() && deviceUrn(serial) == urn) { "not in its one spelling" }
    return serial
}

/** Returns the URN of a device serial: UTF-8, percent-encoded. URLEncoder is for forms. */
fun deviceUrn(serial: String): String =
    DEVICE + URLEncoder.encode(serial, Charsets.UTF_8).replace("+", "%20").replace("*", "%2A").replace("%7E", "~")

private fun certificate(pem: String): X509Certificate = certificate(pem.toByteArray())

/** Of DER or PEM; what follows it is ignored. */
private fun certificate(bytes: ByteArray): X509Certificate =
    CertificateFactory.getInstance("X.509").generateCertificate(bytes.inputStream()) as X509Certificate

// --- bundles

private val FIELDS =
    setOf("version", "image_hash", "camera_token", "device_certificate_chain", "captured_at", "signature")
private val TOKEN_FIELDS = setOf("encrypted_nuc_hash", "table_id", "key_index", "nonce")
private val TIME = Regex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{6}Z")

/** Returns what the device signs: a prefix, and canonical JSON (RFC 8785) of all but the signature. */
fun signedBytes(bundle: Fields): ByteArray =
    "birthmark-bundle-v1\u0000${Json.canonical(bundle - "signature")}".toByteArray()

/** Returns what a device signs to renew its certificate. The first three are DER. */
fun renewalBytes(
    certificate: ByteArray, csr: ByteArray, recipientKey: ByteArray?, requestedAt: String, supersede: Boolean,
): ByteArray {
    val proof = mapOf(
        "certificate_sha256" to sha256(certificate),
        "csr_sha256" to sha256(csr),
        "recipient_key_sha256" to recipientKey?.let(::sha256),
        "requested_at" to requestedAt,
        "supersede" to supersede,
    )
    return "birthmark-renew-v1\u0000${Json.canonical(proof)}".toByteArray()
}

private fun sha256(content: ByteArray): String =
    hex(MessageDigest.getInstance("SHA-256").digest(content))

/** Returns the device serial of a bundle that holds: form, time, certificates, signature. */
fun verifyBundle(text: String, root: String, now: Instant): String {
    require(text.toByteArray().size <= 32_768) { "a bundle has at most 32,768 bytes" }
    val bundle = fields(Json.parse(text))
    val token = fields(bundle["camera_token"])
    val chain = texts(bundle["device_certificate_chain"])
    require(bundle.keys == FIELDS && token.keys == TOKEN_FIELDS && bundle["version"] == 1L) { "not a bundle" }
    require(isIndex(token["table_id"]) && isIndex(token["key_index"])) { "not an index" }
    requireLowerHex(text(bundle, "image_hash"), 32)
    requireLowerHex(text(token, "encrypted_nuc_hash"), 48)
    requireLowerHex(text(token, "nonce"), 12)
    require(chain.size == 2) { "not a chain" }
    val path = chain.map { text ->
        val der = fromBase64(text)
        certificate(der).also { require(it.encoded.contentEquals(der)) { "not one certificate in DER" } }
    }
    val signature = fromBase64(text(bundle, "signature"))
    val captured = moment(text(bundle, "captured_at"))
    require(captured <= now.plusSeconds(3_600)) { "captured in the future" }
    val serial = verifyPath(path, root, now)
    verifyPath(path, root, minOf(captured, now))
    verifySignature(signature, signedBytes(bundle), path[0].publicKey)
    return serial
}

private fun fromBase64(text: String): ByteArray {
    val decoded = Base64.getDecoder().decode(text) // which takes no padding, and loose bits
    require(Base64.getEncoder().encodeToString(decoded) == text) { "not in its one spelling" }
    return decoded
}

private fun isIndex(value: Any?) = value is Long && value >= 0

private fun requireLowerHex(text: String, size: Int) =
    require(Regex("[0-9a-f]{${2 * size}}").matches(text)) { "not $size bytes in lower-case hex" }

private fun moment(text: String): Instant {
    require(TIME.matches(text)) { "not a time in its one spelling" }
    try {
        return LocalDateTime.parse(text.dropLast(1)).toInstant(ZoneOffset.UTC)
    } catch (noSuchDay: DateTimeException) {
        throw IllegalArgumentException(noSuchDay)
    }
}

/** The kind of the key alone decides how it signs. */
fun verifySignature(signature: ByteArray, message: ByteArray, key: PublicKey) {
    val algorithm = signatureAlgorithm(key)
    val fits = Signature.getInstance(algorithm).run {
        initVerify(key)
        update(message)
        // The JDK takes zeros at the end of an Ed25519 signature.
        (algorithm != "Ed25519" || signature.size == 64) && verify(signature)
    }
    if (!fits) throw GeneralSecurityException("the signature does not fit")
}

/** Signs as a device. */
fun sign(message: ByteArray, key: PrivateKey): ByteArray =
    Signature.getInstance(signatureAlgorithm(key)).run {
        initSign(key)
        update(message)
        sign()
    }

private fun signatureAlgorithm(key: Key): String = when {
    key is ECKey && key.params.order.bitLength() == 256 -> "SHA256withECDSA"
    key is ECKey && key.params.order.bitLength() == 384 -> "SHA384withECDSA"
    key is RSAKey && key.modulus.bitLength() in 2048..4096 -> "SHA256withRSA"
    key.algorithm in setOf("EdDSA", "Ed25519") -> "Ed25519"
    else -> throw GeneralSecurityException("no device has such a key")
}

// --- verdicts

/** What the authority knows of a device. */
class Device(val status: String, val tableAssignments: List<Long>)

/** Returns why a well-formed token gets its verdict: it is PASS for "genuine" alone. */
fun judge(
    tables: Long,
    keysPerTable: Long,
    tableId: Long,
    keyIndex: Long,
    opened: Boolean,
    device: Device?,
): String = when {
    tableId !in 0..<tables -> "unknown_table"
    keyIndex !in 0..<keysPerTable -> "unknown_key_index"
    !opened -> "not_opened"
    device == null -> "unknown_device"
    tableId !in device.tableAssignments -> "table_not_assigned"
    device.status != "active" -> "device_${device.status}"
    else -> "genuine"
}

// --- JSON that others wrote

@Suppress("UNCHECKED_CAST") // as Json reads them
fun fields(value: Any?): Fields = requireNotNull(value as? Fields) { "not an object" }

fun items(value: Any?): List<Any?> = requireNotNull(value as? List<Any?>) { "not an array" }

fun texts(value: Any?): List<String> =
    items(value).map { requireNotNull(it as? String) { "not a text" } }

fun text(fields: Fields, name: String): String =
    requireNotNull(fields[name] as? String) { "no text: $name" }
