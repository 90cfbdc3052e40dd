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
import java.security.KeyPairGenerator
import java.security.KeyStore
import java.security.PrivateKey
import java.security.ProviderException
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import java.text.SimpleDateFormat
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
 * Three keys are in the AndroidKeyStore and never leave it:
 * - SIGNING signs the CSR and the bundles. Its purpose is PURPOSE_SIGN alone, so the Keystore refuses
 *   any other use, such as opening the secrets.
 * - AGREEMENT is the recipient key, with PURPOSE_AGREE_KEY (since API 31). The authority seals NUC hash
 *   and table keys to it.
 * - STORAGE encrypts the provisioning response on disk. Table keys and NUC hash must be in memory to make
 *   a token, because the Keystore cannot derive keys with HKDF.
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
    private val keyStore = KeyStore.getInstance(PROVIDER).apply { load(null) }
    private val directory = File(context.noBackupFilesDir, "birthmark").apply { mkdirs() }
    private val request = AtomicFile(File(directory, "request"))
    private val state = AtomicFile(File(directory, "state"))

    private val signer = CameraCore.SigningKey { message ->
        Signature.getInstance("SHA256withECDSA").run {
            initSign(keyStore.getKey(SIGNING, null) as PrivateKey)
            update(message)
            sign()
        }
    }

    private val agreed = CameraCore.AgreementKey { other ->
        KeyAgreement.getInstance("ECDH", PROVIDER).run {
            init(keyStore.getKey(AGREEMENT, null))
            doPhase(other, true)
            generateSecret()
        }
    }

    private val provisioned: CameraCore.Provisioned by lazy {
        opened(if (state.baseFile.exists()) unsealed() else provision())
    }

    /** Returns the bundle of a picture as JSON. The first call provisions; offline it throws IOException. */
    @Synchronized
    fun capture(picture: ByteArray): String =
        CameraCore.capture(provisioned, picture, signer, now())

    /**
     * Provisions the camera and returns the response. The request is on disk before it is sent, so that
     * the next call repeats it, with the same idempotency key, if the response is lost.
     */
    private fun provision(): String {
        if (!request.baseFile.exists()) {
            makePair(SIGNING, KeyProperties.PURPOSE_SIGN)
            makePair(AGREEMENT, KeyProperties.PURPOSE_AGREE_KEY)
            val body = CameraCore.provisioningRequest(
                serial, "Android", publicKey(SIGNING), signer, publicKey(AGREEMENT),
            )
            write(request, "${UUID.randomUUID()}\n$body".toByteArray())
        }
        val (idempotencyKey, body) = String(request.readFully()).split('\n', limit = 2)
        val answer = post(idempotencyKey, body)
        opened(answer) // throws before anything is stored if the response is not for this camera
        write(state, sealed(answer.toByteArray()))
        request.delete()
        return answer
    }

    private fun opened(answer: String) =
        CameraCore.provisioned(serial, answer, publicKey(SIGNING), agreed)

    private fun post(idempotencyKey: String, body: String): String {
        val http = URL("$authority/api/v1/devices/provision").openConnection() as HttpURLConnection
        try {
            http.connectTimeout = 5_000
            http.readTimeout = 20_000
            http.instanceFollowRedirects = false
            http.doOutput = true
            http.setRequestProperty("Content-Type", "application/json")
            http.setRequestProperty("Idempotency-Key", idempotencyKey)
            enrolmentKey?.let { http.setRequestProperty("Authorization", "Bearer $it") }
            http.outputStream.use { it.write(body.toByteArray()) }
            if (http.responseCode != 200) {
                // 429, 502 to 504 and no response are temporary: try again within 24 hours. Other errors
                // need a person.
                val said = http.errorStream?.use { String(it.readBytes()) } ?: ""
                throw IOException("${http.responseCode} $said")
            }
            return http.inputStream.use { String(it.readBytes()) }
        } finally {
            http.disconnect()
        }
    }

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
        const val SIGNING = "birthmark-signing"
        const val AGREEMENT = "birthmark-agreement"
        const val STORAGE = "birthmark-storage"
        const val GCM = "AES/GCM/NoPadding"
    }
}
