// Package kafka connects to the brokers as the settings say: client options, producer, the check of the topics, and
// explanations of what goes wrong on the way.
package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
	"go.uber.org/zap"

	"auditsink/config"
)

// Options returns what every client needs: brokers, name, TLS, authentication and the log. Files that can't be used
// are an *[config.Error] that names each with its variable.
func Options(cfg config.Config, log *zap.Logger) ([]kgo.Opt, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(cfg.KafkaBrokers...),
		kgo.ClientID("auditsink"),
		kgo.WithLogger(newLogger(log)),
	}
	if cfg.KafkaTLS {
		t, err := tlsConfig(cfg)
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(t))
	}
	mechanism, err := saslMechanism(cfg)
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		if cfg.KafkaSASLMechanism == "PLAIN" && !cfg.KafkaTLS {
			log.Warn("the SASL password travels unencrypted: set " + config.Prefix + "KAFKA_TLS=true where the brokers offer TLS")
		}
		opts = append(opts, kgo.SASL(mechanism))
	}
	return opts, nil
}

func tlsConfig(cfg config.Config) (*tls.Config, error) {
	const caFile, certFile, keyFile = config.Prefix + "KAFKA_TLS_CA_FILE", config.Prefix + "KAFKA_TLS_CERT_FILE", config.Prefix + "KAFKA_TLS_KEY_FILE"
	var problems []config.Problem
	read := func(variable, path string) []byte {
		content, err := os.ReadFile(path) //nolint:gosec // the operator names the file
		if err != nil {
			if pe, ok := errors.AsType[*os.PathError](err); ok {
				err = pe.Err // the path is shown already
			}
			problems = append(problems, config.Problem{
				Variable: variable, Value: path, Cause: "can't be read: " + err.Error(), Remedy: "Name a PEM file that this process may read.",
			})
		}
		return content
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.KafkaTLSServerName}
	if path := cfg.KafkaTLSCAFile; path != "" {
		if pem := read(caFile, path); pem != nil {
			t.RootCAs = x509.NewCertPool()
			if !t.RootCAs.AppendCertsFromPEM(pem) {
				problems = append(problems, config.Problem{
					Variable: caFile, Value: path, Cause: "holds no certificate", Remedy: "Name a file with PEM blocks of type CERTIFICATE.",
				})
			}
		}
	}
	if cfg.KafkaTLSCertFile != "" {
		cert, key := read(certFile, cfg.KafkaTLSCertFile), read(keyFile, cfg.KafkaTLSKeyFile)
		if cert != nil && key != nil {
			pair, err := tls.X509KeyPair(cert, key)
			if err != nil {
				problems = append(problems, config.Problem{
					Variable: certFile, Value: cfg.KafkaTLSCertFile,
					Cause:  "and " + keyFile + "=" + cfg.KafkaTLSKeyFile + " can't be used together: " + err.Error(),
					Remedy: "Name a PEM certificate and the unencrypted PEM key that belongs to it.",
				})
			}
			t.Certificates = []tls.Certificate{pair}
		}
	}
	if problems != nil {
		return nil, &config.Error{Problems: problems}
	}
	return t, nil
}

func saslMechanism(cfg config.Config) (sasl.Mechanism, error) {
	user, password := cfg.KafkaSASLUsername, cfg.KafkaSASLPassword.Reveal()
	switch cfg.KafkaSASLMechanism {
	case "":
		return nil, nil //nolint:nilnil // none is an answer, not an absence
	case "PLAIN":
		return plain.Auth{User: user, Pass: password}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: user, Pass: password}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: user, Pass: password}.AsSha512Mechanism(), nil
	default:
		return nil, &config.Error{Problems: []config.Problem{{
			Variable: config.Prefix + "KAFKA_SASL_MECHANISM", Value: cfg.KafkaSASLMechanism,
			Cause: "is not a mechanism we know", Remedy: "Set PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.",
		}}}
	}
}

// OnConnectFailure has each connect to a broker that fails told.
func OnConnectFailure(tell func()) kgo.Opt { return kgo.WithHooks(connectHook(tell)) }

// connectHook is told of connects.
type connectHook func()

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (tell connectHook) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		tell()
	}
}
