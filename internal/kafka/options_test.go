package kafka

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/config"
	"auditsink/internal/testkit"
)

// Every file that can't be used is named with its variable, all at once.
func TestOptionsFiles(t *testing.T) {
	dir := t.TempDir()
	files, err := testkit.Certificates(dir)
	require.NoError(t, err)
	other, err := testkit.Certificates(t.TempDir())
	require.NoError(t, err)
	missing, empty := filepath.Join(dir, "missing.pem"), filepath.Join(dir, "empty.pem")
	require.NoError(t, os.WriteFile(empty, []byte("no PEM"), 0o600))

	for name, test := range map[string]struct {
		ca, cert, key string
		problems      []string
	}{
		"usable": {files.CA, files.ClientCert, files.ClientKey, nil},
		"missing": {missing, missing, missing, []string{
			"AUDITSINK_KAFKA_TLS_CA_FILE=" + `"` + missing + `" can't be read: no such file or directory.`,
			"AUDITSINK_KAFKA_TLS_CERT_FILE=" + `"` + missing + `" can't be read`,
			"AUDITSINK_KAFKA_TLS_KEY_FILE=" + `"` + missing + `" can't be read`,
		}},
		"no PEM":                {empty, files.ClientCert, files.ClientKey, []string{"AUDITSINK_KAFKA_TLS_CA_FILE=" + `"` + empty + `" holds no certificate`}},
		"a key as authority":    {files.ServerKey, "", "", []string{"AUDITSINK_KAFKA_TLS_CA_FILE=" + `"` + files.ServerKey + `" holds no certificate`}},
		"key of another":        {"", files.ClientCert, other.ClientKey, []string{"AUDITSINK_KAFKA_TLS_CERT_FILE=" + `"` + files.ClientCert + `" and AUDITSINK_KAFKA_TLS_KEY_FILE=` + other.ClientKey + " can't be used together"}},
		"mixed up cert and key": {"", files.ClientKey, files.ClientCert, []string{"can't be used together"}},
	} {
		t.Run(name, func(t *testing.T) {
			opts, err := Options(settings([]string{"k"}, withTLS(test.ca), withCertificate(test.cert, test.key)), zap.NewNop())
			if test.problems == nil {
				require.NoError(t, err)
				require.NotEmpty(t, opts)
				return
			}
			var e *config.Error
			require.ErrorAs(t, err, &e)
			require.Len(t, e.Problems, len(test.problems))
			for i, problem := range test.problems {
				require.Contains(t, e.Problems[i].String(), problem)
			}
		})
	}
}

func TestOptionsUnknownMechanism(t *testing.T) {
	_, err := Options(settings([]string{"k"}, withSASL("GSSAPI", "u", "p")), zap.NewNop())
	var e *config.Error
	require.ErrorAs(t, err, &e)
	require.ErrorContains(t, err, "AUDITSINK_KAFKA_SASL_MECHANISM")
}

func TestOptionsWarnsOfAnUnencryptedPassword(t *testing.T) {
	for mechanism, tls := range map[string]bool{"PLAIN": false, "SCRAM-SHA-512": false, "PLAIN ": true} {
		core, logs := observer.New(zapcore.DebugLevel)
		cfg := settings([]string{"k"}, withSASL(mechanism[:5], "u", "hunter2"))
		cfg.KafkaTLS = tls
		if mechanism == "SCRAM-SHA-512" {
			cfg.KafkaSASLMechanism = mechanism
		}
		_, err := Options(cfg, zap.New(core))
		require.NoError(t, err)
		require.Equal(t, mechanism == "PLAIN", logs.FilterMessageSnippet("unencrypted").Len() == 1)
	}
}

func TestLoggerLevels(t *testing.T) {
	for _, test := range []struct {
		zap  zapcore.Level
		want kgo.LogLevel
	}{
		{zapcore.DebugLevel, kgo.LogLevelDebug},
		{zapcore.InfoLevel, kgo.LogLevelWarn},
		{zapcore.WarnLevel, kgo.LogLevelWarn},
		{zapcore.ErrorLevel, kgo.LogLevelError},
		{zapcore.FatalLevel, kgo.LogLevelNone},
	} {
		core, logs := observer.New(test.zap)
		log := newLogger(zap.New(core))
		require.Equal(t, test.want, log.Level(), test.zap)
		for _, level := range []kgo.LogLevel{kgo.LogLevelError, kgo.LogLevelWarn, kgo.LogLevelInfo, kgo.LogLevelDebug} {
			logs.TakeAll()
			log.Log(level, "message", "broker", 1)
			require.Equal(t, test.zap <= zapLevel(level), logs.Len() == 1, "%s at %s", level, test.zap)
		}
	}
}

// A line is of the logger "kafka", with the client's own pairs, and without a stack or a caller.
func TestLoggerLine(t *testing.T) {
	var out bytes.Buffer
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		MessageKey: "msg", LevelKey: "level", NameKey: "logger", CallerKey: "caller", StacktraceKey: "stack",
		EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeCaller: zapcore.ShortCallerEncoder,
	}), zapcore.AddSync(&out), zapcore.DebugLevel)
	log := newLogger(zap.New(core, zap.AddCaller(), zap.AddStacktrace(zapcore.WarnLevel)))
	log.Log(kgo.LogLevelError, "unable to join", "group", "g", "n", 1)
	require.JSONEq(t, `{"level":"error","logger":"kafka","msg":"unable to join","group":"g","n":1}`, out.String())
}

// A broker that can't be reached is told of; one that can isn't.
func TestOnConnectFailure(t *testing.T) {
	for address, fails := range map[string]bool{"127.0.0.1:1": true, testkit.Kafka(t).Brokers()[0]: false} {
		var told atomic.Bool
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		client, err := kgo.NewClient(kgo.SeedBrokers(address), OnConnectFailure(func() {
			told.Store(true)
			cancel() // the client would try again until then
		}))
		require.NoError(t, err)
		require.Equal(t, fails, client.Ping(ctx) != nil)
		cancel()
		client.Close()
		require.Equal(t, fails, told.Load())
	}
}
