package kafka

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// settings are the defaults and brokers.
func settings(brokers []string, change ...func(*config.Config)) config.Config {
	cfg := config.Default()
	cfg.KafkaBrokers = brokers
	for _, f := range change {
		f(&cfg)
	}
	return cfg
}

func withSASL(mechanism, user string, password config.Secret) func(*config.Config) {
	return func(cfg *config.Config) {
		cfg.KafkaSASLMechanism, cfg.KafkaSASLUsername, cfg.KafkaSASLPassword = mechanism, user, password
	}
}

func withTLS(ca string) func(*config.Config) {
	return func(cfg *config.Config) { cfg.KafkaTLS, cfg.KafkaTLSCAFile = true, ca }
}

func withCertificate(cert, key string) func(*config.Config) {
	return func(cfg *config.Config) { cfg.KafkaTLSCertFile, cfg.KafkaTLSKeyFile = cert, key }
}

// connect makes a client by the settings, which the test closes.
func connect(t *testing.T, cfg config.Config, extra ...kgo.Opt) *kgo.Client {
	t.Helper()
	opts, err := Options(cfg, zap.NewNop())
	require.NoError(t, err)
	client, err := kgo.NewClient(append(opts, extra...)...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// soon bounds what must not take long, however busy the machine.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// secureBroker is one broker with all kinds of listeners; of the users "stranger" may do nothing.
func secureBroker(t *testing.T) (*testkit.Broker, *testkit.CertificateFiles) {
	t.Helper()
	files, err := testkit.Certificates(t.TempDir())
	require.NoError(t, err)
	broker := testkit.OwnKafka(t, testkit.KafkaOptions{
		Certificates: files,
		Users: []testkit.User{
			{Mechanism: testkit.Plain, Name: "plain", Password: "secret-plain"},
			{Mechanism: testkit.ScramSHA256, Name: "scram256", Password: "secret-256"},
			{Mechanism: testkit.ScramSHA512, Name: "scram512", Password: "secret-512"},
			{Mechanism: testkit.Plain, Name: "stranger", Password: "secret-stranger"},
		},
		Properties: map[string]string{
			"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"super.users":           "User:ANONYMOUS;User:plain;User:scram256;User:scram512;User:CN=client",
		},
	})
	broker.CreateTopic(t, "events", 1, nil)
	return broker, files
}

func TestSecurity(t *testing.T) {
	broker, files := secureBroker(t)
	other, err := testkit.Certificates(t.TempDir())
	require.NoError(t, err)
	type change = func(*config.Config)

	accepted := map[string]struct {
		listener testkit.Listener
		changes  []change
	}{
		"plaintext":             {testkit.Plaintext, nil},
		"PLAIN":                 {testkit.SASLPlaintext, []change{withSASL("PLAIN", "plain", "secret-plain")}},
		"SCRAM-SHA-256":         {testkit.SASLPlaintext, []change{withSASL("SCRAM-SHA-256", "scram256", "secret-256")}},
		"SCRAM-SHA-512":         {testkit.SASLPlaintext, []change{withSASL("SCRAM-SHA-512", "scram512", "secret-512")}},
		"TLS":                   {testkit.TLS, []change{withTLS(files.CA)}},
		"TLS, server's name":    {testkit.TLS, []change{withTLS(files.CA), func(c *config.Config) { c.KafkaTLSServerName = "localhost" }}},
		"mutual TLS":            {testkit.MutualTLS, []change{withTLS(files.CA), withCertificate(files.ClientCert, files.ClientKey)}},
		"TLS and PLAIN":         {testkit.SASLTLS, []change{withTLS(files.CA), withSASL("PLAIN", "plain", "secret-plain")}},
		"TLS and SCRAM-SHA-512": {testkit.SASLTLS, []change{withTLS(files.CA), withSASL("SCRAM-SHA-512", "scram512", "secret-512")}},
	}
	for name, test := range accepted {
		t.Run(name, func(t *testing.T) {
			client := connect(t, settings(broker.BrokersOn(test.listener), test.changes...))
			require.NoError(t, CheckTopics(soon(t), kadm.NewClient(client), []string{"events"}))
		})
	}

	refused := map[string]struct {
		listener testkit.Listener
		changes  []change
		message  string // a part of the explanation
		remedy   string // another
		fatal    bool
	}{
		"wrong password, PLAIN": {
			testkit.SASLPlaintext,
			[]change{withSASL("PLAIN", "plain", "wrong-pass")},
			"refused user plain with PLAIN", "Check AUDITSINK_KAFKA_SASL_USERNAME and AUDITSINK_KAFKA_SASL_PASSWORD", true,
		},
		"wrong password, SCRAM": {
			testkit.SASLPlaintext,
			[]change{withSASL("SCRAM-SHA-256", "scram256", "wrong-pass")},
			"refused user scram256 with SCRAM-SHA-256", "credentials for SCRAM-SHA-256", true,
		},
		"credentials for another mechanism": {
			testkit.SASLPlaintext,
			[]change{withSASL("SCRAM-SHA-512", "scram256", "secret-256")},
			"refused user scram256 with SCRAM-SHA-512", "credentials for SCRAM-SHA-512", true,
		},
		"no SASL": {testkit.SASLPlaintext, nil, "closed the connection", "If it asks for SASL, set AUDITSINK_KAFKA_SASL_MECHANISM", false},
		"no SASL on TLS": {
			testkit.SASLTLS,
			[]change{withTLS(files.CA)},
			"closed the connection", "If it asks for SASL, set AUDITSINK_KAFKA_SASL_MECHANISM", false,
		},
		"SASL not asked for": {
			testkit.Plaintext,
			[]change{withSASL("PLAIN", "plain", "secret-plain")},
			"it has no SASL", "leave AUDITSINK_KAFKA_SASL_MECHANISM", true,
		},
		"plaintext to TLS": {testkit.TLS, nil, "expects TLS and we came without", "Set AUDITSINK_KAFKA_TLS=true", true},
		"SASL without TLS": {
			testkit.SASLTLS,
			[]change{withSASL("PLAIN", "plain", "secret-plain")},
			"expects TLS and we came without", "Set AUDITSINK_KAFKA_TLS=true", true,
		},
		"TLS to plaintext": {testkit.Plaintext, []change{withTLS(files.CA)}, "closed the connection", "set AUDITSINK_KAFKA_TLS=false", false},
		"wrong authority": {
			testkit.TLS,
			[]change{withTLS(other.CA)},
			"signed by an authority we don't trust", "Set AUDITSINK_KAFKA_TLS_CA_FILE", true,
		},
		"no authority": {
			testkit.TLS,
			[]change{withTLS("")},
			"signed by an authority we don't trust", "Set AUDITSINK_KAFKA_TLS_CA_FILE", true,
		},
		"wrong server name": {
			testkit.TLS,
			[]change{withTLS(files.CA), func(c *config.Config) { c.KafkaTLSServerName = "kafka.example" }},
			"certificate is for another name", "Set AUDITSINK_KAFKA_TLS_SERVER_NAME", true,
		},
		"no certificate": {
			testkit.MutualTLS,
			[]change{withTLS(files.CA)},
			"refused our TLS connection", "set AUDITSINK_KAFKA_TLS_CERT_FILE and AUDITSINK_KAFKA_TLS_KEY_FILE", true,
		},
		"certificate of another authority": {
			testkit.MutualTLS,
			[]change{withTLS(files.CA), withCertificate(other.ClientCert, other.ClientKey)},
			"refused our TLS connection", "signed by an authority in the brokers' trust store", true,
		},
	}
	for name, test := range refused {
		t.Run(name, func(t *testing.T) {
			cfg := settings(broker.BrokersOn(test.listener), test.changes...)
			err := CheckTopics(soon(t), kadm.NewClient(connect(t, cfg)), []string{"events"})
			require.Error(t, err)
			require.Equal(t, test.fatal, Fatal(err), "%T %v", err, err)
			explained := Explain(err, cfg)
			require.ErrorIs(t, explained, err)
			require.Equal(t, test.fatal, Fatal(explained))
			for _, part := range []string{test.message, test.remedy, "AUDITSINK_KAFKA_BROKERS=" + cfg.KafkaBrokers[0]} {
				require.ErrorContains(t, explained, part)
			}
			require.NotRegexp(t, "secret-|wrong-pass", explained.Error())
		})
	}

	t.Run("authorization", func(t *testing.T) {
		cfg := settings(broker.BrokersOn(testkit.SASLPlaintext), withSASL("PLAIN", "stranger", "secret-stranger"))
		client := connect(t, cfg)
		err := CheckTopics(soon(t), kadm.NewClient(client), []string{"events", "more"})
		for _, part := range []string{`use of topic "events"`, `use of topic "more"`, "Grant its user Describe and Read"} {
			require.ErrorContains(t, err, part)
		}
		require.True(t, Fatal(err))

		err = Explain(client.ProduceSync(soon(t), &kgo.Record{Topic: "events"}).FirstErr(), cfg)
		require.ErrorContains(t, err, "don't allow the user stranger the use of a topic")
		require.ErrorContains(t, err, "Write")
		require.True(t, Fatal(err))

		member := connect(t, cfg, kgo.ConsumerGroup("theirs"), kgo.ConsumeTopics("events"))
		err = Explain(member.PollFetches(soon(t)).Err(), cfg)
		require.ErrorContains(t, err, "don't allow the user stranger")
		require.True(t, Fatal(err))
	})
}
