package org.birthmark.camera

import android.content.Context
import android.os.Build
import android.security.keystore.KeyGenParameterSpec
import android.security.keystore.KeyProperties
import android.util.AtomicFile
import java.io.File
import java.io.IOException
import java.net.HttpURLConnection
import java.net.URL
import java.security.GeneralSecurityException
import java.security.KeyPairGenerator
import java.security.KeyStore
import java.security.PrivateKey
import java.security.ProviderException
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import java.text.SimpleDateFormat
import java.util.Base64
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import java.util.UUID
import javax.crypto.Cipher
import javax.crypto.KeyAgreement
import javax.crypto.KeyGenerator
import javax.crypto.SecretKey
import javax.crypto.spec.GCMParameterSpec

/**
 * A camera on Android 12 (API 31) or later. Call it from a background thread.
 *
 * Three kinds of keys are in the AndroidKeyStore and never leave it:
 * - SIGNING signs the CSR and the bundles. Its purpose is PURPOSE_SIGN alone, so the Keystore refuses
 *   any other use, such as opening the secrets.
 * - AGREEMENT is the recipient key, with PURPOSE_AGREE_KEY (since API 31). The authority seals NUC hash
 *   and table keys to it.
 * - STORAGE encrypts the authority's response on disk. Table keys and NUC hash must be in memory to make
 *   a token, because the Keystore cannot derive keys with HKDF.
 *
 * Each renewal makes a new pair of SIGNING and AGREEMENT: the alias ends with the generation.
 *
 * Below API 31 the Keystore has no key agreement. RSA with OAEP is no alternative: the authority uses
 * SHA-256 for MGF1 too (RSA-OAEP-256), which the Keystore allows only since API 35.
 */
class BirthmarkCamera(
    context: Context,
    private val authority: String,
    private val serial: String,
    private val enrolmentKey: String?,
) {
    /** A certificate with its keys. A renewal replaces all of it at once. */
    private class Current(
        val generation: Int,
        val share: Double,
        val camera: CameraCore.Provisioned,
    )

    private class Answer(val status: Int, val said: String, val retryAfterMs: Long)

    private val keyStore = KeyStore.getInstance(PROVIDER).apply { load(null) }
    private val directory = File(context.noBackupFilesDir, "birthmark").apply { mkdirs() }
    private val request = AtomicFile(File(directory, "request"))
    private val renewal = AtomicFile(File(directory, "renewal"))
    private val state = AtomicFile(File(directory, "state"))
    private val renewing = Any()
    private var current: Current? = null
    private var failures = 0
    private var nextCall = 0L

    /** Returns the bundle of a picture as JSON. The first call provisions; offline it throws IOException. */
    @Synchronized
    fun capture(picture: ByteArray): String {
        val now = current()
        return CameraCore.capture(now.camera, picture, signer(now.generation), now())
    }

    /**
     * Renews the certificate if it is time, and returns the pause in ms until the next call. Call it from
     * the job that sends the bundles; `capture` works meanwhile, with the old certificate.
     *
     * New keys and CSR are stored before they are sent, and the same CSR gets the same certificate again:
     * neither a crash nor a lost response strands the camera. The old certificate stays valid.
     */
    fun renewIfDue(): Long = synchronized(renewing) {
        val left = nextCall - System.currentTimeMillis()
        if (left in 1..DAY_MS) return left // a longer pause comes from a clock that was ahead
        val pause = try {
            renew(synchronized(this) { current() })
        } catch (error: IOException) { // no network, or a captive portal
            CameraCore.renewalPause(failures++, 0)
        } catch (error: GeneralSecurityException) { // a response for another camera
            CameraCore.renewalPause(failures++, 0)
        }
        nextCall = System.currentTimeMillis() + pause
        pause
    }

    private fun renew(before: Current): Long {
        val next = before.generation + 1
        if (!renewal.baseFile.exists() || stored(renewal, 2)[0].toInt() != next) {
            val asked = ask(CameraCore.renewalPath(before.camera), null, emptyMap())
            val window = if (asked.status == 200) asked.said else null
            val due = CameraCore.renewalTime(before.camera, window, before.share) -
                System.currentTimeMillis()
            if (due > 0) {
                val again = if (asked.retryAfterMs > 0) asked.retryAfterMs else ASK_MS
                return minOf(due, again, DAY_MS)
            }
            makePair(SIGNING + next, KeyProperties.PURPOSE_SIGN)
            makePair(AGREEMENT + next, KeyProperties.PURPOSE_AGREE_KEY)
            val csr = CameraCore.renewalCsr(
                serial, publicKey(SIGNING + next), signer(next), publicKey(AGREEMENT + next),
            )
            write(renewal, "$next\n$csr".toByteArray())
        }
        val csr = stored(renewal, 2)[1]
        val body = CameraCore.renewalRequest(
            before.camera, csr, publicKey(AGREEMENT + next), signer(before.generation), now(),
        )
        val answer = ask("/api/v1/devices/renew", body, emptyMap())
        if (answer.status != 200) {
            // 403 renewal-time-refused: the clock is wrong. 403 renewal-refused or device-not-active: the
            // operator has to act. 409 and 422: this CSR will never be accepted.
            if (answer.status == 409 || answer.status == 422) {
                renewal.delete()
                forgetKeysExcept(before.generation)
            }
            return CameraCore.renewalPause(failures++, answer.retryAfterMs)
        }
        val nucHash = before.camera.nucHash
        // Throws before anything is stored if the response is not for this camera.
        CameraCore.renewed(serial, answer.said, publicKey(SIGNING + next), agreed(next), nucHash)
        val known = Base64.getEncoder().encodeToString(nucHash)
        write(state, sealed("$next\n${Math.random()}\n$known\n${answer.said}".toByteArray()))
        synchronized(this) { // no capture is using the old keys now
            current = null
            forgetKeysExcept(next)
        }
        renewal.delete()
        failures = 0
        return ASK_MS
    }

    private fun current(): Current {
        current?.let { return it }
        if (!state.baseFile.exists()) provision()
        val (generation, share, known, answer) = unsealed().split('\n', limit = 4)
        return opened(generation.toInt(), share.toDouble(), known, answer).also { current = it }
    }

    private fun opened(generation: Int, share: Double, known: String, answer: String): Current {
        val signing = publicKey(SIGNING + generation)
        val camera = if (known.isEmpty()) {
            CameraCore.provisioned(serial, answer, signing, agreed(generation))
        } else {
            val nucHash = Base64.getDecoder().decode(known)
            CameraCore.renewed(serial, answer, signing, agreed(generation), nucHash)
        }
        return Current(generation, share, camera)
    }

    /**
     * Provisions the camera and stores the response. The request is on disk before it is sent, so that
     * the next call repeats it, with the same idempotency key, if the response is lost.
     */
    private fun provision() {
        if (!request.baseFile.exists()) {
            makePair(SIGNING + 0, KeyProperties.PURPOSE_SIGN)
            makePair(AGREEMENT + 0, KeyProperties.PURPOSE_AGREE_KEY)
            val body = CameraCore.provisioningRequest(
                serial, "Android", publicKey(SIGNING + 0), signer(0), publicKey(AGREEMENT + 0),
            )
            write(request, "${UUID.randomUUID()}\n$body".toByteArray())
        }
        val (idempotencyKey, body) = stored(request, 2)
        val more = mutableMapOf("Idempotency-Key" to idempotencyKey)
        enrolmentKey?.let { more["Authorization"] = "Bearer $it" }
        val answer = ask("/api/v1/devices/provision", body, more)
        // 429, 502 to 504 and no response are temporary: try again within 24 hours. Other errors need a
        // person.
        if (answer.status != 200) throw IOException("${answer.status} ${answer.said}")
        // Throws before anything is stored if the response is not for this camera.
        opened(0, 0.0, "", answer.said)
        write(state, sealed("0\n${Math.random()}\n\n${answer.said}".toByteArray()))
        request.delete()
    }

    private fun signer(generation: Int) = CameraCore.SigningKey { message ->
        Signature.getInstance("SHA256withECDSA").run {
            initSign(keyStore.getKey(SIGNING + generation, null) as PrivateKey)
            update(message)
            sign()
        }
    }

    private fun agreed(generation: Int) = CameraCore.AgreementKey { other ->
        KeyAgreement.getInstance("ECDH", PROVIDER).run {
            init(keyStore.getKey(AGREEMENT + generation, null))
            doPhase(other, true)
            generateSecret()
        }
    }

    /** Sends a request once: a POST if it has a body, else a GET. */
    private fun ask(path: String, body: String?, more: Map<String, String>): Answer {
        val http = URL(authority + path).openConnection() as HttpURLConnection
        try {
            http.connectTimeout = 5_000
            http.readTimeout = 20_000
            http.instanceFollowRedirects = false
            more.forEach { (name, value) -> http.setRequestProperty(name, value) }
            if (body != null) {
                http.doOutput = true
                http.setRequestProperty("Content-Type", "application/json")
                http.outputStream.use { it.write(body.toByteArray()) }
            }
            val status = http.responseCode
            val stream = if (status == 200) http.inputStream else http.errorStream
            val seconds = http.getHeaderField("Retry-After")?.toLongOrNull() ?: 0
            return Answer(status, stream?.use { String(it.readBytes()) } ?: "", 1_000 * seconds)
        } finally {
            http.disconnect()
        }
    }

    private fun forgetKeysExcept(generation: Int) {
        val kept = setOf(SIGNING + generation, AGREEMENT + generation, STORAGE)
        for (alias in keyStore.aliases().toList()) {
            if (alias.startsWith("birthmark-") && alias !in kept) keyStore.deleteEntry(alias)
        }
    }

    private fun stored(file: AtomicFile, parts: Int) = String(file.readFully()).split('\n', limit = parts)

    private fun makePair(alias: String, purpose: Int) {
        if (keyStore.containsAlias(alias)) return
        fun make(strongBox: Boolean) {
            val spec = KeyGenParameterSpec.Builder(alias, purpose)
                .setAlgorithmParameterSpec(ECGenParameterSpec("secp256r1"))
                .setIsStrongBoxBacked(strongBox)
            if (purpose == KeyProperties.PURPOSE_SIGN) spec.setDigests(KeyProperties.DIGEST_SHA256)
            KeyPairGenerator.getInstance(KeyProperties.KEY_ALGORITHM_EC, PROVIDER)
                .apply { initialize(spec.build()) }
                .generateKeyPair()
        }
        try {
            make(strongBox = true)
        } catch (unavailable: ProviderException) {
            // The phone has no StrongBox, or one that cannot make this key. Nearly every TEE can.
            make(strongBox = false)
        }
    }

    private fun publicKey(alias: String) = keyStore.getCertificate(alias).publicKey

    private fun storageKey(): SecretKey {
        (keyStore.getKey(STORAGE, null) as SecretKey?)?.let { return it }
        val spec = KeyGenParameterSpec
            .Builder(STORAGE, KeyProperties.PURPOSE_ENCRYPT or KeyProperties.PURPOSE_DECRYPT)
            .setBlockModes(KeyProperties.BLOCK_MODE_GCM)
            .setEncryptionPaddings(KeyProperties.ENCRYPTION_PADDING_NONE)
            .setKeySize(256)
            .build()
        return KeyGenerator.getInstance(KeyProperties.KEY_ALGORITHM_AES, PROVIDER)
            .apply { init(spec) }
            .generateKey()
    }

    private fun sealed(plain: ByteArray): ByteArray =
        Cipher.getInstance(GCM).run {
            init(Cipher.ENCRYPT_MODE, storageKey()) // the Keystore chooses the nonce
            iv + doFinal(plain)
        }

    private fun unsealed(): String =
        Cipher.getInstance(GCM).run {
            val all = state.readFully()
            init(Cipher.DECRYPT_MODE, storageKey(), GCMParameterSpec(128, all, 0, 12))
            String(doFinal(all, 12, all.size - 12))
        }

    private fun write(file: AtomicFile, content: ByteArray) {
        val stream = file.startWrite()
        try {
            stream.write(content)
            file.finishWrite(stream)
        } catch (error: IOException) {
            file.failWrite(stream)
            throw error
        }
    }

    private fun now(): String =
        SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss.SSS'000Z'", Locale.ROOT)
            .apply { timeZone = TimeZone.getTimeZone("UTC") }
            .format(Date())

    init {
        require(Build.VERSION.SDK_INT >= Build.VERSION_CODES.S) { "Android 12 or later" }
    }

    private companion object {
        const val PROVIDER = "AndroidKeyStore"
        const val SIGNING = "birthmark-signing-"
        const val AGREEMENT = "birthmark-agreement-"
        const val STORAGE = "birthmark-storage"
        const val GCM = "AES/GCM/NoPadding"
        const val DAY_MS = 86_400_000L
        const val ASK_MS = DAY_MS / 4
    }
}
