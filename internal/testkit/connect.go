package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// ConnectOptions says which Kafka Connect to run.
type ConnectOptions struct {
	// Dir is an empty folder, for its configuration. The caller removes it when the worker has ended.
	Dir string
	// JVM are the Java options.
	JVM []string
	// Worker and Connector are the properties of the one and the other. None may need escaping in a file of java.util.Properties.
	Worker, Connector map[string]string
}

// DebeziumVersion is the version of Debezium's JDBC sink, as the pom has it.
func DebeziumVersion() string {
	_, rest, _ := strings.Cut(string(pom), "<debezium.version>")
	version, _, _ := strings.Cut(rest, "<")
	return version
}

// ConnectCommand prepares a Kafka Connect worker that is alone (standalone mode) and runs one connector, of those which Kafka and Debezium's JDBC sink bring. It
// fetches them the first time. The worker prints warnings and errors to standard output. Told to stop (SIGTERM), it ends with exit code 143, as a JVM does.
func ConnectCommand(ctx context.Context, o ConnectOptions) (*exec.Cmd, error) {
	java, err := program("java", "default-jre-headless")
	if err != nil {
		return nil, err
	}
	libraries, err := connectLibraries(ctx)
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(o.Dir, name) }
	if err := errors.Join(
		writeProperties(file("worker.properties"), o.Worker),
		writeProperties(file("connector.properties"), o.Connector),
		os.WriteFile(file("log4j2.properties"), log4j, 0o600),
	); err != nil {
		return nil, fmt.Errorf("configure Kafka Connect: %w", err)
	}
	args := slices.Concat(o.JVM, []string{
		"-Dlog4j2.configurationFile=" + file("log4j2.properties"),
		"-cp", filepath.Join(libraries, "*"),
		"org.apache.kafka.connect.cli.ConnectStandalone", file("worker.properties"), file("connector.properties"),
	})
	cmd := exec.CommandContext(ctx, java, args...)
	cmd.Dir = o.Dir
	return cmd, nil
}
