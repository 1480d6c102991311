package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/config"
)

// Error says to an operator what went wrong with the brokers and what to do.
type Error struct {
	Cause  string // what and where
	Remedy string // what to do, in sentences
	Fatal  bool   // it lasts until somebody changes the settings or the cluster
	Err    error  // what the client said
}

func (e *Error) Error() string { return e.Cause + " (" + e.Err.Error() + "). " + e.Remedy }

// Unwrap returns what the client said.
func (e *Error) Unwrap() error { return e.Err }

// Explain returns err as an *[Error] where it is a failure that operators meet, and as it is otherwise. cfg are the
// settings the client was made with. A client that produces or consumes retries most of these failures without end and
// without a word; [CheckTopics] brings them out.
func Explain(err error, cfg config.Config) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	for _, explain := range []func(error, config.Config) *Error{saslError, tlsError, authorizationError, topicError, networkError} {
		if e := explain(err, cfg); e != nil {
			e.Err = err
			return e
		}
	}
	return err
}

// Fatal tells whether err lasts until somebody changes the settings or the cluster; otherwise trying again may help.
func Fatal(err error) bool {
	e, ok := errors.AsType[*Error](Explain(err, config.Config{}))
	return ok && e.Fatal
}

// at says where: the brokers we were told of.
func at(cfg config.Config) string {
	return config.Prefix + "KAFKA_BROKERS=" + strings.Join(cfg.KafkaBrokers, ",")
}

func saslError(err error, cfg config.Config) *Error {
	switch mechanism := cfg.KafkaSASLMechanism; {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return &Error{
			Cause: "the brokers refused user " + cfg.KafkaSASLUsername + " with " + mechanism + ", " + at(cfg),
			Remedy: "Check " + config.Prefix + "KAFKA_SASL_USERNAME and " + config.Prefix +
				"KAFKA_SASL_PASSWORD, and that the cluster holds this user's credentials for " + mechanism + ".",
			Fatal: true,
		}
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		return &Error{
			Cause:  "the brokers don't offer " + mechanism + ", " + at(cfg),
			Remedy: "Set " + config.Prefix + "KAFKA_SASL_MECHANISM to one the listener has (sasl.enabled.mechanisms).",
			Fatal:  true,
		}
	case errors.Is(err, kerr.IllegalSaslState):
		return &Error{
			Cause: "the listener doesn't take " + mechanism + ", because it has no SASL, " + at(cfg),
			Remedy: "Name the port of a listener with SASL, or leave " + config.Prefix + "KAFKA_SASL_MECHANISM, " +
				config.Prefix + "KAFKA_SASL_USERNAME and " + config.Prefix + "KAFKA_SASL_PASSWORD empty.",
			Fatal: true,
		}
	}
	return nil
}

func tlsError(err error, cfg config.Config) *Error {
	certificate, badCertificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, firstRead := errors.AsType[*kgo.ErrFirstReadEOF](err)
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	remote, hasRemote := errors.AsType[*net.OpError](err)
	switch {
	case badCertificate:
		return certificateError(certificate, cfg)
	case hasRemote && remote.Op == "remote error": // an alert sent by the broker
		return &Error{
			Cause: "the broker refused our TLS connection, " + at(cfg),
			Remedy: "Where the listener asks for a certificate, set " + config.Prefix + "KAFKA_TLS_CERT_FILE and " +
				config.Prefix + "KAFKA_TLS_KEY_FILE to one signed by an authority in the brokers' trust store.",
			Fatal: true,
		}
	case strings.Contains(err.Error(), "tls alert record"): // the client has no type for it
		return &Error{
			Cause:  "the listener expects TLS and we came without, " + at(cfg),
			Remedy: "Set " + config.Prefix + "KAFKA_TLS=true, or name the port of a listener without TLS.",
			Fatal:  true,
		}
	case notTLS:
		return &Error{
			Cause:  "the listener doesn't speak TLS, " + at(cfg),
			Remedy: "Set " + config.Prefix + "KAFKA_TLS=false, or name the port of a listener with TLS.",
			Fatal:  true,
		}
	case firstRead:
		return closedError(cfg)
	}
	return nil
}

func certificateError(err *tls.CertificateVerificationError, cfg config.Config) *Error {
	e := &Error{
		Cause:  "a broker's certificate is not valid, " + at(cfg),
		Remedy: "Renew the certificate, and check this machine's clock.",
		Fatal:  true,
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		e.Cause = "a broker's certificate is signed by an authority we don't trust, " + at(cfg)
		e.Remedy = "Set " + config.Prefix + "KAFKA_TLS_CA_FILE to the PEM file of the authority that signed it."
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		e.Cause = "a broker's certificate is for another name, " + at(cfg)
		e.Remedy = "Set " + config.Prefix + "KAFKA_TLS_SERVER_NAME to a name in the certificate, or connect by such a name."
	}
	return e
}

// closedError is for a connection that the broker closed before it answered. Kafka does so where it can't make sense
// of what we send, and doesn't say why; a broker that is stopping does it too, so it isn't fatal.
func closedError(cfg config.Config) *Error {
	var remedy []string
	if cfg.KafkaTLS {
		remedy = append(remedy, "If the listener has no TLS, set "+config.Prefix+"KAFKA_TLS=false.")
	} else {
		remedy = append(remedy, "If the listener expects TLS, set "+config.Prefix+"KAFKA_TLS=true.")
	}
	if cfg.KafkaSASLMechanism == "" {
		remedy = append(remedy, "If it asks for SASL, set "+config.Prefix+"KAFKA_SASL_MECHANISM, a user and a password.")
	}
	return &Error{Cause: "a broker closed the connection without an answer, " + at(cfg), Remedy: strings.Join(remedy, " ")}
}

// topicRights are the operations that a consumer or a producer must be allowed.
const topicRights = "Describe and Read (to produce: Write) on the topic"

func authorizationError(err error, cfg config.Config) *Error {
	user := "the user " + cfg.KafkaSASLUsername
	if cfg.KafkaSASLUsername == "" {
		user = "this client"
	}
	for _, denied := range []struct {
		code         error
		what, rights string
	}{
		{kerr.TopicAuthorizationFailed, "a topic", topicRights},
		{kerr.GroupAuthorizationFailed, "the consumer group " + cfg.KafkaGroup, "Read on that group"},
		{kerr.ClusterAuthorizationFailed, "the cluster", "IdempotentWrite on the cluster, or Write on the topics"},
	} {
		if errors.Is(err, denied.code) {
			return &Error{
				Cause:  "the brokers don't allow " + user + " the use of " + denied.what + ", " + at(cfg),
				Remedy: "Grant " + user + " " + denied.rights + ".",
				Fatal:  true,
			}
		}
	}
	return nil
}

func topicError(err error, cfg config.Config) *Error {
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil
	}
	return &Error{
		Cause:  "the cluster doesn't have the topic, " + at(cfg),
		Remedy: "Create it, or correct the name (" + config.Prefix + "KAFKA_TOPICS).",
		Fatal:  true,
	}
}

// networkError comes last: the others may hold an error of the network.
func networkError(err error, cfg config.Config) *Error {
	e := &Error{
		Cause:  "no broker can be reached, " + at(cfg),
		Remedy: "Check the addresses and ports, and that the brokers run and the network lets us through.",
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		if _, ok := errors.AsType[*net.DNSError](err); ok {
			e.Remedy = "Check the names in the list, and this machine's DNS."
		}
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Cause = "no broker answered in time, " + at(cfg)
		return e
	}
	return nil
}
