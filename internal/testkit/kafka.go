package testkit

import (
	"context"
	"crypto/rand"
	_ "embed" // for log4j2.properties
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

//go:embed log4j2.properties
var log4j []byte

// BrokerID is the node ID of a broker that is alone.
const BrokerID = 1

// KafkaOptions says which broker to start.
type KafkaOptions struct {
	// Properties are further lines of server.properties and go before the defaults.
	Properties map[string]string
	// Users may log in on SASLPlaintext and, with Certificates, SASLTLS.
	Users []User
	// Certificates, if not nil, opens TLS and MutualTLS.
	Certificates *CertificateFiles
	// JVM replaces the Java options, which make a small broker that is ready soon. The benchmark
	// wants others.
	JVM []string
}

// Broker is an Apache Kafka of one node, or one of the nodes of a Cluster, with its own data, on ports of 127.0.0.1 that stay the same over
// restarts. Topics are not created automatically. The methods that stop and start it are for one
// goroutine at a time.
type Broker struct {
	topics

	id        int32
	nodes     []*Broker // of the whole cluster
	options   KafkaOptions
	java      string
	libraries string
	cluster   string
	place     *place
	ports     map[Listener]int
	process   *process
}

// StartKafka starts a broker without topics. ctx bounds the start only. The caller must call Close.
func StartKafka(ctx context.Context, options KafkaOptions) (*Broker, error) {
	if len(options.JVM) == 0 {
		options.JVM = []string{"-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}
	}
	broker, err := newBroker(ctx, options, BrokerID, newClusterID())
	if err != nil {
		return nil, err
	}
	broker.joinNodes([]*Broker{broker})
	formatted := false
	err = onFreePorts(func() error {
		err := broker.configure()
		if err == nil && !formatted {
			err = broker.format(ctx)
			formatted = true
		}
		if err == nil {
			err = broker.start(ctx)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, broker.Close())
	}
	return broker, nil
}

// newBroker finds what a node of a cluster needs. joinNodes comes next.
func newBroker(ctx context.Context, options KafkaOptions, id int32, cluster string) (*Broker, error) {
	java, err := program("java", "default-jre-headless")
	if err != nil {
		return nil, err
	}
	libraries, err := kafkaLibraries(ctx)
	if err != nil {
		return nil, err
	}
	place, err := newPlace(ctx, "kafka")
	if err != nil {
		return nil, err
	}
	return &Broker{id: id, options: options, java: java, libraries: libraries, place: place, cluster: cluster}, nil
}

// joinNodes tells a broker the nodes of its cluster, of which it is one.
func (b *Broker) joinNodes(nodes []*Broker) {
	b.nodes = nodes
	b.topics = topics{nodes: nodes, brokers: b.Brokers}
}

// ID returns the broker's node ID.
func (b *Broker) ID() int32 { return b.id }

// configure prepares a start on new ports.
func (b *Broker) configure() error {
	if err := b.choosePorts(); err != nil {
		return err
	}
	return b.writeProperties()
}

// choosePorts takes a port for each listener.
func (b *Broker) choosePorts() error {
	b.ports = map[Listener]int{}
	for _, listener := range append(b.options.listeners(), controller) {
		port, err := b.place.port()
		if err != nil {
			return err
		}
		b.ports[listener] = port
	}
	return nil
}

// writeProperties writes server.properties and what it names.
func (b *Broker) writeProperties() error {
	properties, err := b.security()
	if err != nil {
		return err
	}
	var listeners, advertised, protocols []string
	for _, listener := range slices.Sorted(maps.Keys(b.ports)) {
		endpoint := string(listener) + "://" + address(b.ports[listener])
		listeners = append(listeners, endpoint)
		protocols = append(protocols, string(listener)+":"+listener.protocol())
		if listener != controller {
			advertised = append(advertised, endpoint)
		}
	}
	var voters []string
	for _, node := range b.nodes {
		voters = append(voters, strconv.Itoa(int(node.id))+"@"+address(node.ports[controller]))
	}
	copies := strconv.Itoa(len(b.nodes))
	enough := strconv.Itoa(len(b.nodes)/2 + 1) // a node may be down
	maps.Copy(properties, map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        strconv.Itoa(int(b.id)),
		"controller.quorum.voters":       strings.Join(voters, ","),
		"controller.listener.names":      string(controller),
		"inter.broker.listener.name":     string(Plaintext),
		"listeners":                      strings.Join(listeners, ","),
		"advertised.listeners":           strings.Join(advertised, ","),
		"listener.security.protocol.map": strings.Join(protocols, ","),
		"log.dirs":                       filepath.Join(b.place.dir, "data"),
		"auto.create.topics.enable":      "false",

		// A copy on every node, and internal topics that are there at once.
		"min.insync.replicas":                              enough,
		"offsets.topic.replication.factor":                 copies,
		"offsets.topic.num.partitions":                     "1",
		"transaction.state.log.replication.factor":         copies,
		"transaction.state.log.min.isr":                    enough,
		"transaction.state.log.num.partitions":             "1",
		"share.coordinator.state.topic.replication.factor": copies,
		"share.coordinator.state.topic.min.isr":            enough,
		"share.coordinator.state.topic.num.partitions":     "1",

		// Tests wait for rebalances and for expired sessions. A broker that was killed comes back only
		// when its own session with the controller has expired.
		"group.initial.rebalance.delay.ms": "0",
		"group.min.session.timeout.ms":     "100",
		"broker.session.timeout.ms":        "3000",
		"broker.heartbeat.interval.ms":     "500",

		"log.cleaner.dedupe.buffer.size": "4194304", // of a small heap
	})
	maps.Copy(properties, b.options.Properties)
	return errors.Join(
		writeProperties(b.config(), properties),
		os.WriteFile(b.logging(), log4j, 0o600))
}

// writeProperties writes a file of java.util.Properties. Neither names nor values may need escaping.
func writeProperties(path string, properties map[string]string) error {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&text, "%s=%s\n", name, properties[name])
	}
	return os.WriteFile(path, []byte(text.String()), 0o600)
}

func (b *Broker) config() string { return filepath.Join(b.place.dir, "server.properties") }

func (b *Broker) logging() string { return filepath.Join(b.place.dir, "log4j2.properties") }

// LogFile returns the path of the broker's log.
func (b *Broker) LogFile() string { return filepath.Join(b.place.dir, "server.log") }

// command runs one of the Java classes that are Kafka's programs.
func (b *Broker) command(ctx context.Context, jvm []string, class string, args ...string) *exec.Cmd {
	args = slices.Concat(jvm, []string{
		"-Dlog4j2.configurationFile=" + b.logging(),
		"-cp", filepath.Join(b.libraries, "*"),
		class,
	}, args)
	cmd := exec.CommandContext(ctx, b.java, args...)
	cmd.Dir = b.place.dir
	return cmd
}

// toolJVM are the Java options of a program that ends soon.
var toolJVM = []string{"-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}

// format makes the data folder, with the users whose credentials are kept in it.
func (b *Broker) format(ctx context.Context) error {
	args := []string{"format", "--cluster-id=" + b.cluster, "--config", b.config()}
	args = append(args, b.options.scramArguments()...)
	if err := run(b.command(ctx, toolJVM, "kafka.tools.StorageTool", args...)); err != nil {
		return fmt.Errorf("format Kafka's storage: %w", err)
	}
	return nil
}

// newClusterID returns a UUID in Kafka's notation.
func newClusterID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // it never fails
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// start starts the broker on its ports and waits until it takes part in its cluster.
func (b *Broker) start(ctx context.Context) error {
	cmd := b.command(context.WithoutCancel(ctx), b.options.JVM, "kafka.Kafka", b.config())
	var err error
	if b.process, err = startProcess(cmd, b.LogFile()); err != nil {
		return err
	}
	client, err := b.client()
	if err != nil {
		return errors.Join(err, b.Kill())
	}
	defer client.Close()
	return b.process.ready(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		// Asked of the broker itself: another one may still believe that it is there.
		seen, err := metadata(ctx, client.SeedBrokers()[0], "")
		if err != nil {
			return err
		}
		if seen.ClusterID == nil || *seen.ClusterID != b.cluster {
			return errors.New("another cluster's broker answers")
		}
		if !slices.ContainsFunc(seen.Brokers, func(broker kmsg.MetadataResponseBroker) bool { return broker.NodeID == b.id }) {
			return errors.New("the broker is not registered yet")
		}
		return nil
	})
}

// Brokers returns the bootstrap addresses of the listener without TLS and SASL, which is always open.
func (b *Broker) Brokers() []string { return b.BrokersOn(Plaintext) }

// BrokersOn returns the bootstrap addresses of a listener, or none when the options did not open it.
func (b *Broker) BrokersOn(listener Listener) []string {
	port, ok := b.ports[listener]
	if !ok {
		return nil
	}
	return []string{address(port)}
}

// Tool runs one of Kafka's own command line tools by its Java class and returns what it printed, for
// example
//
//	broker.Tool(ctx, "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
//		"--bootstrap-server", broker.Brokers()[0], "--describe", "--all-groups")
func (b *Broker) Tool(ctx context.Context, class string, args ...string) (string, error) {
	cmd := b.command(ctx, toolJVM, class, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := cmd.CombinedOutput()
	if err != nil {
		return string(output), fmt.Errorf("%s: %w\n%s", class, err, lastBytes(output))
	}
	return string(output), nil
}

// Stop shuts the broker down in order. The data stays. Stopping a broker that is down does nothing.
func (b *Broker) Stop() error { return b.process.stop(syscall.SIGTERM) }

// Kill kills the broker at once (SIGKILL).
func (b *Broker) Kill() error { return b.process.kill() }

// Restart stops the broker if it runs, and starts it again on the same ports and data. ctx bounds the
// start.
func (b *Broker) Restart(ctx context.Context) error {
	if err := b.Stop(); err != nil {
		return err
	}
	return b.start(ctx)
}

// Pause freezes the broker (SIGSTOP): connections stay open and nothing answers.
func (b *Broker) Pause() error { return b.process.pause() }

// Continue lets a paused broker go on.
func (b *Broker) Continue() error { return b.process.unpause() }

// Close ends the broker and removes its data.
func (b *Broker) Close() error {
	var err error
	if b.process != nil {
		err = b.Kill()
	}
	return errors.Join(err, b.place.release())
}
