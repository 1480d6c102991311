package config

import (
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// topicName is what Kafka allows as a topic's name, besides its length and the names "." and "..".
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// kafka checks the brokers' addresses and the topics.
func (c *check) kafka(cfg Config) {
	for _, broker := range cfg.KafkaBrokers {
		if !brokerAddress(broker) {
			c.add(Prefix+"KAFKA_BROKERS", redact(broker), "is not a broker's address", "Set host:port, parted by commas, without a scheme.")
		}
	}
	for _, topic := range cfg.KafkaTopics {
		if IsPattern(topic) {
			if _, err := regexp.Compile(topic); err != nil {
				c.add(Prefix+"KAFKA_TOPICS", topic, "is not a regular expression ("+err.Error()+")", "Mend it; note that a comma ends an entry.")
			}
		} else if !topicName.MatchString(topic) || topic == "." || topic == ".." {
			c.add(Prefix+"KAFKA_TOPICS", topic, "is not a topic's name", "Use letters, digits, '.', '_' and '-'; a regular expression starts with ^.")
		}
	}
}

// IsPattern tells whether an entry of the topics is a regular expression.
func IsPattern(topic string) bool { return strings.HasPrefix(topic, "^") }

// brokerAddress tells whether s is host, host:port or [IPv6]:port.
func brokerAddress(s string) bool {
	if strings.ContainsAny(s, "/@ \t") {
		return false
	}
	if !strings.Contains(s, ":") {
		return s != ""
	}
	host, port, err := net.SplitHostPort(s)
	return err == nil && host != "" && portNumber(port, 1)
}

// portNumber tells whether s is a TCP port, and at least least.
func portNumber(s string, least uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= least
}

// tls checks the TLS settings against each other; whether the files can be used is seen where they are.
func (c *check) tls(cfg Config) {
	const cert, key = Prefix + "KAFKA_TLS_CERT_FILE", Prefix + "KAFKA_TLS_KEY_FILE"
	if cfg.KafkaTLSCertFile != "" && cfg.KafkaTLSKeyFile == "" {
		c.add(cert, cfg.KafkaTLSCertFile, "has no key", "Set "+key+" too.")
	}
	if cfg.KafkaTLSKeyFile != "" && cfg.KafkaTLSCertFile == "" {
		c.add(key, cfg.KafkaTLSKeyFile, "has no certificate", "Set "+cert+" too.")
	}
	if cfg.KafkaTLS || !c.sound("KAFKA_TLS") {
		return
	}
	for _, s := range []Setting{
		{Prefix + "KAFKA_TLS_CA_FILE", cfg.KafkaTLSCAFile},
		{cert, cfg.KafkaTLSCertFile},
		{key, cfg.KafkaTLSKeyFile},
		{Prefix + "KAFKA_TLS_SERVER_NAME", cfg.KafkaTLSServerName},
	} {
		if s.Value != "" {
			c.add(s.Variable, s.Value, "has no effect without TLS", "Set "+Prefix+"KAFKA_TLS=true or remove it.")
		}
	}
}

// sasl checks that a mechanism comes with a user and a password, and they with a mechanism.
func (c *check) sasl(cfg Config) {
	const mechanism, username, password = "KAFKA_SASL_MECHANISM", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD" //nolint:gosec // names of variables
	if !c.sound(mechanism) {
		return
	}
	if cfg.KafkaSASLMechanism == "" {
		if cfg.KafkaSASLUsername != "" || cfg.KafkaSASLPassword != "" {
			c.add(Prefix+mechanism, "", "is not set, but a user or a password is", "Set it to PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, or remove those.")
		}
		return
	}
	cause := "is not set, but " + Prefix + mechanism + " is"
	if cfg.KafkaSASLUsername == "" {
		c.add(Prefix+username, "", cause, "Set the user to authenticate as.")
	}
	if cfg.KafkaSASLPassword == "" && c.sound(password) {
		c.add(Prefix+password, "", cause, "Set it, or "+Prefix+password+"_FILE.")
	}
}

// keyValue is how a connection string of key=value pairs begins.
var keyValue = regexp.MustCompile(`^\s*[a-z_]+\s*=`)

// postgres checks a connection string's form; the rest is the client's to read.
func (c *check) postgres(name string, conn Secret) {
	text := conn.Reveal()
	if text == "" || !c.sound(name) || keyValue.MatchString(text) {
		return
	}
	const remedy = "Set postgres://user:password@host:5432/database (special characters in the password as %XX), or key=value pairs." //nolint:gosec // an example
	u, err := url.Parse(text)
	switch {
	case err != nil:
		c.add(Prefix+name, "", "is not a URL (its value is not shown)", remedy) // err would show it
	case u.Scheme != "postgres" && u.Scheme != "postgresql":
		c.add(Prefix+name, redactURL(text), "is not a URL of PostgreSQL", remedy)
	case strings.Contains(u.Path+u.Fragment, "@"):
		c.add(Prefix+name, "", "has an @ after the host: the password probably holds a character that ends it (its value is not shown)", remedy)
	}
}

// url checks the form of a URL that may hold a password.
func (c *check) url(name string, value Secret, remedy string, schemes ...string) {
	text := value.Reveal()
	if text == "" || !c.sound(name) {
		return
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		c.add(Prefix+name, "", "is not a URL (its value is not shown)", remedy) // err would show it
	case !slices.Contains(schemes, u.Scheme) || u.Host == "" && u.Path == "":
		c.add(Prefix+name, redactURL(text), "is not such a URL", remedy)
	}
}

// redact makes a value fit to be shown: one that looks like a URL may hold a password.
func redact(text string) string {
	if strings.Contains(text, "@") || strings.Contains(text, "://") {
		return redactURL(text)
	}
	return text
}

// redactURL shows a URL without its password, query and fragment, and nothing of what isn't certainly a URL: in
// postgres://user:12#34@host the parser takes half of the password for a port.
func redactURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || strings.Contains(u.Host+u.Path+u.RawQuery+u.Fragment, "@") {
		return ""
	}
	u.RawQuery, u.Fragment = "", ""
	return u.Redacted()
}
