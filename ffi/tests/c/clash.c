/* Sealane, OpenSSL and GnuTLS in one process: each seals the same message before, while and after
 * the others work, and none disturbs another. Exits 0 where all is well; prints what was not. */
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <openssl/evp.h>

#include "check.h"

enum { MESSAGE = 4096, TAG = 16, ROUNDS = 200 };

static unsigned char key[32], nonce[12], message[MESSAGE];

static void by_openssl(unsigned char sealed[MESSAGE + TAG])
{
	int length = 0;
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	CHECK(context != NULL);
	CHECK(EVP_EncryptInit_ex(context, EVP_aes_256_gcm(), NULL, key, nonce) == 1);
	CHECK(EVP_EncryptUpdate(context, sealed, &length, message, MESSAGE) == 1);
	CHECK(length == MESSAGE);
	CHECK(EVP_EncryptFinal_ex(context, sealed + MESSAGE, &length) == 1);
	CHECK(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, TAG, sealed + MESSAGE) == 1);
	EVP_CIPHER_CTX_free(context);
}

static void by_gnutls(unsigned char sealed[MESSAGE + TAG])
{
	gnutls_datum_t datum = {key, sizeof key};
	gnutls_aead_cipher_hd_t cipher;
	size_t length = MESSAGE + TAG;
	CHECK(gnutls_aead_cipher_init(&cipher, GNUTLS_CIPHER_AES_256_GCM, &datum) == 0);
	CHECK(gnutls_aead_cipher_encrypt(cipher, nonce, sizeof nonce, NULL, 0, TAG, message, MESSAGE,
	                                 sealed, &length) == 0);
	CHECK(length == MESSAGE + TAG);
	gnutls_aead_cipher_deinit(cipher);
}

/* Both give what the first call gave. */
static void compare(const unsigned char first[MESSAGE + TAG])
{
	unsigned char sealed[MESSAGE + TAG];
	by_openssl(sealed);
	CHECK(memcmp(sealed, first, sizeof sealed) == 0);
	by_gnutls(sealed);
	CHECK(memcmp(sealed, first, sizeof sealed) == 0);
}

/* The message from one end to the other, and the others at work while it is under way. */
static void crosses(const struct end *from, const struct end *to,
                    const unsigned char first[MESSAGE + TAG])
{
	unsigned char came[MESSAGE];
	struct iovec part = {message, MESSAGE};
	CHECK(sealane_stream_writev(from->stream, &part, 1) == MESSAGE);
	compare(first);
	for (size_t got = 0; got < MESSAGE;) {
		struct iovec rest = {came + got, MESSAGE - got};
		ssize_t count = sealane_stream_readv(to->stream, &rest, 1);
		CHECK(count > 0);
		got += (size_t)count;
	}
	CHECK(memcmp(came, message, MESSAGE) == 0);
}

static void all_at_once(int provider, const char *name, const unsigned char first[MESSAGE + TAG])
{
	struct end near, far;
	struct sealane_trust *trust = new_trust();
	struct sealane_config *config = NULL;
	CHECK(sealane_config_new(&config) == 0);
	CHECK(sealane_config_set_provider(config, provider) == 0);
	connect_ends(&near, &far, trust, config);
	CHECK(strcmp(sealane_streams_provider(near.streams), name) == 0);
	for (int round = 0; round < ROUNDS; round++) {
		crosses(&near, &far, first);
		crosses(&far, &near, first);
	}
	destroy_end(&near);
	destroy_end(&far);
	sealane_config_destroy(&config);
	sealane_trust_destroy(&trust);
}

int main(void)
{
	const int providers[] = {SEALANE_PROVIDER_AWS_LC, SEALANE_PROVIDER_RING,
	                         SEALANE_PROVIDER_AES_GCM};
	const char *names[] = {"aws-lc-rs", "ring", "aes-gcm"};
	unsigned char first[MESSAGE + TAG];
	memset(key, 7, sizeof key);
	memset(nonce, 9, sizeof nonce);
	for (size_t n = 0; n < MESSAGE; n++)
		message[n] = (unsigned char)(n * 31 + n / 256);
	CHECK(gnutls_global_init() == 0);
	by_openssl(first);
	compare(first);
	for (size_t n = 0; n < sizeof providers / sizeof *providers; n++)
		all_at_once(providers[n], names[n], first);
	compare(first);
	gnutls_global_deinit();
	return 0;
}
