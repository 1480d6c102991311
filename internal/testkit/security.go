package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Listener is one of a broker's ports, with its own way to prove who talks to it.
type Listener string

// The listeners a broker may have.
const (
	Plaintext     Listener = "PLAINTEXT"      // always open, for everybody
	SASLPlaintext Listener = "SASL_PLAINTEXT" // with Users
	TLS           Listener = "SSL"            // with Certificates: the client checks the server
	MutualTLS     Listener = "MTLS"           // with Certificates: and the server the client
	SASLTLS       Listener = "SASL_SSL"       // with both Users and Certificates

	controller Listener = "CONTROLLER"
)

// protocol is the security protocol of the listener in Kafka's terms.
func (l Listener) protocol() string {
	switch l {
	case SASLPlaintext, TLS, SASLTLS:
		return string(l)
	case MutualTLS:
		return string(TLS)
	case Plaintext, controller:
	}
	return string(Plaintext)
}

// Mechanism is a SASL mechanism.
type Mechanism string

// The mechanisms a user may log in with.
const (
	Plain       Mechanism = "PLAIN"
	ScramSHA256 Mechanism = "SCRAM-SHA-256"
	ScramSHA512 Mechanism = "SCRAM-SHA-512"
)

// User is somebody a broker lets in with one mechanism. Name and Password consist of letters, digits and
// hyphens: they stand unquoted in Kafka's own settings.
type User struct {
	Mechanism Mechanism
	Name      string
	Password  string
}

// listeners are the listeners that the options open for clients.
func (o *KafkaOptions) listeners() []Listener {
	listeners := []Listener{Plaintext}
	if len(o.Users) > 0 {
		listeners = append(listeners, SASLPlaintext)
	}
	if o.Certificates != nil {
		listeners = append(listeners, TLS, MutualTLS)
	}
	if len(o.Users) > 0 && o.Certificates != nil {
		listeners = append(listeners, SASLTLS)
	}
	return listeners
}

// scramArguments are StorageTool's arguments for the users whose credentials the cluster keeps.
func (o *KafkaOptions) scramArguments() []string {
	var args []string
	for _, user := range o.Users {
		if user.Mechanism != Plain {
			args = append(args, "--add-scram",
				fmt.Sprintf("%s=[name=%s,password=%s]", user.Mechanism, user.Name, user.Password))
		}
	}
	return args
}

// security returns the lines of server.properties for the listeners that are not open to everybody.
func (b *Broker) security() (map[string]string, error) {
	properties := map[string]string{}
	files := b.options.Certificates
	keystore := filepath.Join(b.place.dir, "keystore.pem")
	if files != nil {
		if err := concatenate(keystore, files.ServerKey, files.ServerCert); err != nil {
			return nil, fmt.Errorf("write the broker's key store: %w", err)
		}
	}
	for _, listener := range b.options.listeners() {
		prefix := "listener.name." + strings.ToLower(string(listener)) + "."
		if strings.HasSuffix(listener.protocol(), "SSL") {
			properties[prefix+"ssl.keystore.type"] = "PEM"
			properties[prefix+"ssl.keystore.location"] = keystore
			properties[prefix+"ssl.truststore.type"] = "PEM"
			properties[prefix+"ssl.truststore.location"] = files.CA
		}
		if listener == MutualTLS {
			properties[prefix+"ssl.client.auth"] = "required"
		}
		if strings.HasPrefix(listener.protocol(), "SASL") {
			properties[prefix+"sasl.enabled.mechanisms"] = join(Plain, ScramSHA256, ScramSHA512)
			properties[prefix+"plain.sasl.jaas.config"] = b.options.plainModule()
			for _, mechanism := range []Mechanism{ScramSHA256, ScramSHA512} {
				name := prefix + strings.ToLower(string(mechanism)) + ".sasl.jaas.config"
				properties[name] = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
			}
		}
	}
	return properties, nil
}

// plainModule is the login module that holds the users of PLAIN.
func (o *KafkaOptions) plainModule() string {
	module := "org.apache.kafka.common.security.plain.PlainLoginModule required"
	for _, user := range o.Users {
		if user.Mechanism == Plain {
			module += fmt.Sprintf(" user_%s=%q", user.Name, user.Password)
		}
	}
	return module + ";"
}

func join(mechanisms ...Mechanism) string {
	var names []string
	for _, mechanism := range mechanisms {
		names = append(names, string(mechanism))
	}
	return strings.Join(names, ",")
}

// concatenate writes the content of files to path. Kafka's PEM key store is one file, the key first.
func concatenate(path string, files ...string) error {
	var all []byte
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		all = slices.Concat(all, content)
	}
	return os.WriteFile(path, all, 0o600)
}
