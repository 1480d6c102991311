package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/config"
)

// What a broker in a test doesn't do; the rest is in TestSecurity.
func TestExplain(t *testing.T) {
	cfg := settings([]string{"k1:9092", "k2:9092"}, withSASL("PLAIN", "me", "hunter2"))
	cfg.KafkaGroup = "sink"
	for _, test := range []struct {
		err           error
		cause, remedy string
		fatal         bool
	}{
		{kerr.UnsupportedSaslMechanism, "don't offer PLAIN", "sasl.enabled.mechanisms", true},
		{&kgo.ErrGroupSession{Err: kerr.GroupAuthorizationFailed}, "user me the use of the consumer group sink", "Read on that group", true},
		{kerr.ClusterAuthorizationFailed, "the use of the cluster", "IdempotentWrite", true},
		{&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}, "certificate is not valid", "clock", true},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, "doesn't speak TLS", "AUDITSINK_KAFKA_TLS=false", true},
		{context.DeadlineExceeded, "no broker answered in time", "Check the addresses", false},
	} {
		wrapped := fmt.Errorf("poll: %w", test.err)
		err := Explain(wrapped, cfg)
		require.ErrorIs(t, err, wrapped)
		require.ErrorContains(t, err, test.cause)
		require.ErrorContains(t, err, test.remedy)
		require.ErrorContains(t, err, "AUDITSINK_KAFKA_BROKERS=k1:9092,k2:9092")
		require.NotContains(t, err.Error(), "hunter2")
		require.Equal(t, test.fatal, Fatal(err), test.cause)
		require.Equal(t, test.fatal, Fatal(wrapped), test.cause)
		require.Same(t, err, Explain(err, cfg), "explained twice")
	}
}

func TestExplainLeavesOthers(t *testing.T) {
	require.NoError(t, Explain(nil, config.Config{}))
	require.False(t, Fatal(nil))
	for _, err := range []error{errors.New("else"), context.Canceled, kerr.NotLeaderForPartition, kgo.ErrClientClosed} {
		require.Equal(t, err, Explain(err, config.Config{}))
		require.False(t, Fatal(err))
	}
}
