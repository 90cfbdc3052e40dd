// `java Check check <vectors>`, or `seal` / `open` with JSON on standard input.

@file:JvmName("Check")

import java.math.BigInteger
import java.nio.file.Files
import java.nio.file.Path
import java.security.AlgorithmParameters
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.PrivateKey
import java.security.PublicKey
import java.security.SecureRandom
import java.security.spec.ECGenParameterSpec
import java.security.spec.ECParameterSpec
import java.security.spec.ECPrivateKeySpec
import java.security.spec.PKCS8EncodedKeySpec
import java.security.spec.RSAPrivateCrtKeySpec
import java.security.spec.X509EncodedKeySpec
import java.time.Instant
import java.util.Base64
import kotlin.system.exitProcess

/** Each says whether what came out is what the test says; a refusal is an exception. */
private val FILES: Map<String, (Fields, Fields) -> Boolean> = mapOf(
    "key_derivation" to ::keyDerivation,
    "camera_token" to ::cameraToken,
    "provisioning_response" to ::provisioningResponse,
    "certificate_chain" to ::certificateChain,
    "bundle_signature" to ::bundleSignature,
    "renewal_proof" to ::renewalProof,
    "verdict" to ::verdict,
)

private fun keyDerivation(group: Fields, test: Fields): Boolean {
    val salt = bytes(text(group, "salt"))
    val suffix = bytes(text(group, "infoSuffix"))
    val key = deriveKey(bytes(text(test, "masterKey")), number(test, "keyIndex"), salt, suffix)
    return hex(key) == test["derivedKey"]
}

private fun cameraToken(group: Fields, test: Fields): Boolean {
    val token = token(fields(test["cameraToken"]))
    val masterKey = bytes(text(test, "masterKey"))
    val nucHash = open(token, masterKey, number(group, "keysPerTable"))
    if (test["result"] != "valid") return hex(nucHash) == test["nucHash"]
    val again = seal(nucHash, masterKey, token.tableId, token.keyIndex, bytes(token.nonce))
    return hex(nucHash) == test["nucHash"] && again.encryptedNucHash == token.encryptedNucHash.lowercase()
}

private fun provisioningResponse(group: Fields, test: Fields): Boolean {
    val key = testKey(text(group, "recipientLabel"), text(group, "recipientKind"))
    val opened = if (group["type"] == "Response") {
        val deviceKey = publicKey(text(group, "devicePublicKey"), "EC P-256")
        val asked = Asked(text(group, "deviceSerial"), deviceKey, key, text(group, "root"))
        openResponse(fields(test["response"]), asked, Instant.parse(text(group, "now")))
    } else {
        openSecrets(text(test, "sealedSecrets"), key)
    }
    return opened == test["secrets"]
}

private fun certificateChain(group: Fields, test: Fields): Boolean {
    val now = Instant.parse(text(test, "now"))
    val serial = verifyChain(texts(test["chain"]), text(group, "root"), now)
    return serial == test["deviceSerial"] && deviceUrn(serial) == test["deviceUrn"]
}

private fun bundleSignature(group: Fields, test: Fields): Boolean {
    val bundle = text(test, "bundle")
    if (group["type"] == "Bundle") {
        val now = Instant.parse(text(group, "now"))
        return verifyBundle(bundle, text(group, "root"), now) == test["deviceSerial"]
    }
    return signsAlike(group, test, signedBytes(fields(Json.parse(bundle))))
}

private fun renewalProof(group: Fields, test: Fields): Boolean {
    val recipientKey = test["recipientKey"]?.let { bytes(it as String) }
    val message = renewalBytes(
        bytes(text(test, "certificate")), bytes(text(test, "csr")), recipientKey,
        text(test, "requestedAt"), test["supersede"] as Boolean,
    )
    return signsAlike(group, test, message)
}

private fun signsAlike(group: Fields, test: Fields, message: ByteArray): Boolean {
    if (hex(message) != test["signedBytes"]) return false
    val kind = text(group, "keyKind")
    val key = publicKey(text(group, "publicKey"), kind)
    verifySignature(bytes(text(test, "signature")), message, key)
    val signature = sign(message, testKey(text(group, "deviceLabel"), kind))
    verifySignature(signature, message, key)
    return kind.startsWith("EC ") || hex(signature) == test["signature"]
}

private fun verdict(group: Fields, test: Fields): Boolean {
    val device = test["device"]?.let(::fields)?.let {
        Device(text(it, "status"), items(it["tableAssignments"]).map { table -> table as Long })
    }
    val reason = judge(
        number(group, "tables"), number(group, "keysPerTable"),
        number(test, "tableId"), number(test, "keyIndex"), test["opened"] as Boolean, device,
    )
    require(reason != test["reason"] || reason == "genuine") { reason } // FAIL, and for that reason
    return reason == test["reason"]
}

/** The test key that a label stands for (docs/vectors.md): everybody can make it. */
private fun testKey(label: String, kind: String): PrivateKey {
    if (kind == "RSA 2048") return rsaKeys.getOrPut(label) { rsaKey(label) }
    val secret = digest(if (kind.endsWith("P-384")) "SHA-384" else "SHA-256", label)
    val oid = mapOf("X25519" to "6e", "Ed25519" to "70")[kind]
    if (oid != null) {
        val der = PKCS8EncodedKeySpec(bytes("302e020100300506032b65${oid}04220420") + secret)
        return KeyFactory.getInstance(kind).generatePrivate(der)
    }
    val domain = AlgorithmParameters.getInstance("EC").run {
        init(ECGenParameterSpec(if (kind.endsWith("P-384")) "secp384r1" else "secp256r1"))
        getParameterSpec(ECParameterSpec::class.java)
    }
    return KeyFactory.getInstance("EC").generatePrivate(ECPrivateKeySpec(BigInteger(1, secret), domain))
}

private val rsaKeys = mutableMapOf<String, PrivateKey>() // to find the primes takes a second

private fun rsaKey(label: String): PrivateKey {
    val e = BigInteger.valueOf(65_537)
    val (p, q) = listOf(1, 2).map { prime("$label, prime $it") }
    val (p1, q1) = listOf(p, q).map { it - BigInteger.ONE }
    val d = e.modInverse(p1 * q1)
    val numbers = RSAPrivateCrtKeySpec(p * q, e, d, p, q, d.mod(p1), d.mod(q1), q.modInverse(p))
    return KeyFactory.getInstance("RSA").generatePrivate(numbers)
}

/** The first prime at or above the number of a label. */
private fun prime(label: String): BigInteger {
    val blocks = (0..3).joinToString("") { hex(digest("SHA-256", "$label, block $it")) }
    val first = BigInteger(blocks, 16).setBit(1_023).setBit(1_022).setBit(0)
    return (first - BigInteger.ONE).nextProbablePrime()
}

private fun digest(algorithm: String, label: String): ByteArray =
    MessageDigest.getInstance(algorithm).digest(label.toByteArray())

private fun publicKey(pem: String, kind: String): PublicKey {
    val der = Base64.getMimeDecoder().decode(pem.replace(Regex("-----[A-Z ]+-----"), ""))
    return KeyFactory.getInstance(kind.substringBefore(' ')).generatePublic(X509EncodedKeySpec(der))
}

private fun token(fields: Fields) = CameraToken(
    text(fields, "encrypted_nuc_hash"),
    number(fields, "table_id"),
    number(fields, "key_index"),
    text(fields, "nonce"),
)

private fun number(fields: Fields, name: String): Long =
    requireNotNull(fields[name] as? Long) { "no number: $name" }

/** To accept something else is no refusal. */
private fun isRight(agrees: (Fields, Fields) -> Boolean, group: Fields, test: Fields): Boolean =
    try {
        agrees(group, test) && test["result"] != "invalid"
    } catch (refused: GeneralSecurityException) {
        test["result"] != "valid"
    } catch (refused: IllegalArgumentException) {
        test["result"] != "valid"
    }

private fun check(vectors: Path): Int {
    var wrong = 0
    for ((name, agrees) in FILES) {
        val document = fields(Json.parse(Files.readString(vectors.resolve("${name}_test.json"))))
        var ran = 0
        for (group in items(document["testGroups"]).map(::fields)) {
            for (test in items(group["tests"]).map(::fields)) {
                ran++
                if (isRight(agrees, group, test)) continue
                wrong++
                println("$name ${test["tcId"]}: ${test["comment"]}: ${test["result"]}")
            }
        }
        println("$name: $ran tests")
    }
    return wrong
}

fun main(arguments: Array<String>) {
    if (arguments[0] == "check") exitProcess(if (check(Path.of(arguments[1])) == 0) 0 else 1)
    val given = fields(Json.parse(String(System.`in`.readAllBytes())))
    val masterKey = bytes(text(given, "master_key"))
    if (arguments[0] == "open") {
        println(hex(open(token(fields(given["camera_token"])), masterKey)))
        return
    }
    val nonce = ByteArray(12).also(SecureRandom()::nextBytes)
    val nucHash = bytes(text(given, "nuc_hash"))
    val made = seal(nucHash, masterKey, number(given, "table_id"), number(given, "key_index"), nonce)
    val fields = mapOf(
        "encrypted_nuc_hash" to made.encryptedNucHash,
        "table_id" to made.tableId,
        "key_index" to made.keyIndex,
        "nonce" to made.nonce,
    )
    println(Json.canonical(fields))
}
