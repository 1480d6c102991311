package testkit

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

func TestKafka(t *testing.T) {
	broker := Kafka(t)
	topic := Name(t)
	broker.CreateTopic(t, topic, 3, map[string]string{"cleanup.policy": "compact"})
	produceAndConsume(t, broker.Brokers(), topic, "value")

	described, err := broker.Tool(t.Context(), "org.apache.kafka.tools.TopicCommand",
		"--bootstrap-server", broker.Brokers()[0], "--describe", "--topic", topic)
	require.NoError(t, err)
	require.Contains(t, described, "PartitionCount: 3")
	require.Contains(t, described, "cleanup.policy=compact")

	said, err := broker.Tool(t.Context(), "org.apache.kafka.tools.TopicCommand",
		"--bootstrap-server", broker.Brokers()[0], "--describe", "--topic", "missing")
	require.Error(t, err)
	require.Contains(t, said, "missing")

	require.ErrorContains(t, broker.NewTopic(t.Context(), topic, 1, nil), "TOPIC_ALREADY_EXISTS")
	client := newClient(t, broker.Brokers(), kgo.AllowAutoTopicCreation())
	err = client.ProduceSync(t.Context(), &kgo.Record{Topic: Name(t)}).FirstErr()
	require.ErrorContains(t, err, "UNKNOWN_TOPIC_OR_PARTITION", "topics are created by hand only")
}

func TestKafkaRestarts(t *testing.T) {
	broker := OwnKafka(t, KafkaOptions{Properties: map[string]string{"message.max.bytes": "2000"}})
	topic := Name(t)
	broker.CreateTopic(t, topic, 1, nil)
	produce(t, broker.Brokers(), topic, "before")

	client := newClient(t, broker.Brokers(), kgo.ProducerBatchCompression(kgo.NoCompression()))
	large := &kgo.Record{Topic: topic, Value: make([]byte, 4000)}
	require.ErrorContains(t, client.ProduceSync(t.Context(), large).FirstErr(), "MESSAGE_TOO_LARGE")

	for name, end := range map[string]func() error{"stop": broker.Stop, "kill": broker.Kill} {
		require.NoError(t, end(), name)
		require.Error(t, newClient(t, broker.Brokers(), kgo.RequestRetries(0)).Ping(t.Context()), name)
		require.NoError(t, broker.Restart(t.Context()), name)
		consume(t, broker.Brokers(), topic, "before")
	}

	client = newClient(t, broker.Brokers())
	require.NoError(t, client.Ping(t.Context()))
	require.NoError(t, broker.Pause())
	pinged := make(chan error, 1)
	go func() { pinged <- client.Ping(t.Context()) }()
	select {
	case err := <-pinged:
		t.Fatalf("a paused broker answers: %v", err)
	case <-time.After(200 * time.Millisecond): // a frozen broker is silent for any time
	}
	require.NoError(t, broker.Continue())
	require.NoError(t, <-pinged)
}

func TestKafkaSecurity(t *testing.T) {
	files, err := Certificates(t.TempDir())
	require.NoError(t, err)
	strangers, err := Certificates(t.TempDir())
	require.NoError(t, err)
	broker := OwnKafka(t, KafkaOptions{
		Users: []User{
			{Plain, "peter", "peter-secret"},
			{ScramSHA256, "sara", "sara-secret"},
			{ScramSHA512, "sam", "sam-secret"},
		},
		Certificates: files,
	})
	peter := plain.Auth{User: "peter", Pass: "peter-secret"}.AsMechanism()
	sara := scram.Auth{User: "sara", Pass: "sara-secret"}.AsSha256Mechanism()
	sam := scram.Auth{User: "sam", Pass: "sam-secret"}.AsSha512Mechanism()
	trusting := func(files *CertificateFiles) *tls.Config {
		authority, err := os.ReadFile(files.CA)
		require.NoError(t, err)
		pool := x509.NewCertPool()
		require.True(t, pool.AppendCertsFromPEM(authority))
		return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	with := func(config *tls.Config, files *CertificateFiles) *tls.Config {
		pair, err := tls.LoadX509KeyPair(files.ClientCert, files.ClientKey)
		require.NoError(t, err)
		config.Certificates = []tls.Certificate{pair}
		return config
	}

	tests := map[string]struct {
		listener  Listener
		mechanism sasl.Mechanism
		tls       *tls.Config
		wantError string // "" when the client is let in
	}{
		"no security":            {listener: Plaintext},
		"PLAIN":                  {listener: SASLPlaintext, mechanism: peter},
		"SCRAM-SHA-256":          {listener: SASLPlaintext, mechanism: sara},
		"SCRAM-SHA-512":          {listener: SASLPlaintext, mechanism: sam},
		"TLS":                    {listener: TLS, tls: trusting(files)},
		"mutual TLS":             {listener: MutualTLS, tls: with(trusting(files), files)},
		"SCRAM-SHA-512 over TLS": {listener: SASLTLS, mechanism: sam, tls: trusting(files)},

		"PLAIN, wrong password": {
			listener: SASLPlaintext, mechanism: plain.Auth{User: "peter", Pass: "wrong"}.AsMechanism(),
			wantError: "SASL_AUTHENTICATION_FAILED",
		},
		"PLAIN, another mechanism's user": {
			listener: SASLPlaintext, mechanism: plain.Auth{User: "sara", Pass: "sara-secret"}.AsMechanism(),
			wantError: "SASL_AUTHENTICATION_FAILED",
		},
		"SCRAM, wrong password": {
			listener: SASLPlaintext, mechanism: scram.Auth{User: "sara", Pass: "wrong"}.AsSha256Mechanism(),
			wantError: "SASL_AUTHENTICATION_FAILED",
		},
		"SCRAM, unknown user": {
			listener: SASLPlaintext, mechanism: scram.Auth{User: "eve", Pass: "sara-secret"}.AsSha256Mechanism(),
			wantError: "SASL_AUTHENTICATION_FAILED",
		},
		"SCRAM, another mechanism's user": {
			listener: SASLPlaintext, mechanism: scram.Auth{User: "sara", Pass: "sara-secret"}.AsSha512Mechanism(),
			wantError: "SASL_AUTHENTICATION_FAILED",
		},
		"TLS, stranger's authority": {
			listener: TLS, tls: trusting(strangers), wantError: "certificate signed by unknown authority",
		},
		"mutual TLS, no certificate": {
			listener: MutualTLS, tls: trusting(files), wantError: "certificate",
		},
		"mutual TLS, stranger's certificate": {
			listener: MutualTLS, tls: with(trusting(files), strangers), wantError: "certificate",
		},
		"SASL over TLS, no mechanism": {
			listener: SASLTLS, tls: trusting(files), wantError: "is SASL missing?",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			options := []kgo.Opt{kgo.RequestRetries(0)}
			if test.mechanism != nil {
				options = append(options, kgo.SASL(test.mechanism))
			}
			if test.tls != nil {
				options = append(options, kgo.DialTLSConfig(test.tls))
			}
			err := newClient(t, broker.BrokersOn(test.listener), options...).Ping(t.Context())
			if test.wantError == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.wantError)
			}
		})
	}
	require.Nil(t, Kafka(t).BrokersOn(SASLPlaintext))
}

func newClient(t *testing.T, brokers []string, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(brokers...))...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func produceAndConsume(t *testing.T, brokers []string, topic, text string) {
	t.Helper()
	produce(t, brokers, topic, text)
	consume(t, brokers, topic, text)
}

func produce(t *testing.T, brokers []string, topic, text string) {
	t.Helper()
	record := &kgo.Record{Topic: topic, Key: []byte("key"), Value: []byte(text)}
	require.NoError(t, newClient(t, brokers).ProduceSync(t.Context(), record).FirstErr())
}

// consume reads the topic from its start as a new group.
func consume(t *testing.T, brokers []string, topic, text string) {
	t.Helper()
	client := newClient(t, brokers, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(Name(t)))
	fetches := client.PollFetches(t.Context())
	require.NoError(t, fetches.Err())
	require.Len(t, fetches.Records(), 1)
	require.Equal(t, text, string(fetches.Records()[0].Value))
}
