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
    val key = recipientKey(text(group, "recipientLabel"), text(group, "curve"))
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
    return verifyChain(texts(test["chain"]), text(group, "root"), now) == test["deviceSerial"]
}

private fun bundleSignature(group: Fields, test: Fields): Boolean {
    val bundle = text(test, "bundle")
    if (group["type"] == "Bundle") {
        val now = Instant.parse(text(group, "now"))
        return verifyBundle(bundle, text(group, "root"), now) == test["deviceSerial"]
    }
    val message = signedBytes(fields(Json.parse(bundle)))
    if (hex(message) != test["signedBytes"]) return false
    val key = publicKey(text(group, "publicKey"), text(group, "keyKind"))
    verifySignature(bytes(text(test, "signature")), message, key)
    return true
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

/** The test key that a label stands for: everybody can make it. */
private fun recipientKey(label: String, curve: String): PrivateKey {
    val digest = MessageDigest.getInstance(if (curve == "P-384") "SHA-384" else "SHA-256")
    val secret = digest.digest(label.toByteArray())
    if (curve == "X25519") {
        val der = PKCS8EncodedKeySpec(bytes("302e020100300506032b656e04220420") + secret)
        return KeyFactory.getInstance("X25519").generatePrivate(der)
    }
    val domain = AlgorithmParameters.getInstance("EC").run {
        init(ECGenParameterSpec(if (curve == "P-384") "secp384r1" else "secp256r1"))
        getParameterSpec(ECParameterSpec::class.java)
    }
    return KeyFactory.getInstance("EC").generatePrivate(ECPrivateKeySpec(BigInteger(1, secret), domain))
}

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
