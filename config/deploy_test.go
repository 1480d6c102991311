package config

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

const deploy = "../deploy"

// documents are the YAML documents of a file.
func documents[T any](t *testing.T, path string) []T {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	var all []T
	for decoder := yaml.NewDecoder(bytes.NewReader(content)); ; {
		var doc T
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err, path)
		all = append(all, doc)
	}
}

func deployFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	require.NoError(t, filepath.WalkDir(deploy, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	}))
	require.NotEmpty(t, files)
	return files
}

// Every variable that a file of deploy mentions exists, and every YAML file can be read.
func TestDeployNamesOnlySettings(t *testing.T) {
	known := map[string]bool{}
	for _, s := range settings() {
		known[s.variable()] = true
		known[s.file()] = s.secret()
	}
	mention := regexp.MustCompile(Prefix + `[A-Z0-9_]+`)
	found := 0
	for _, path := range deployFiles(t) {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, name := range mention.FindAllString(string(content), -1) {
			require.True(t, known[name], "%s: %s is no setting", path, name)
			found++
		}
		if strings.HasSuffix(path, ".yaml") || strings.HasSuffix(path, ".yml") {
			require.NotEmpty(t, documents[map[string]any](t, path), path)
		}
	}
	require.Positive(t, found)
}

// loads requires that the settings given to a container load, with every secret's file holding a value, and returns them.
func loads(t *testing.T, vars map[string]string, needs ...Need) Config {
	t.Helper()
	vars = maps.Clone(vars)
	for _, s := range settings() {
		if _, ok := vars[s.file()]; ok && s.secret() {
			require.True(t, strings.HasPrefix(vars[s.file()], "/run/secrets/") || strings.HasPrefix(vars[s.file()], "/etc/auditsink/secrets/"))
			vars[s.file()] = file(t, "postgres://user:password@host/database\n")
		}
	}
	environment(t, vars)
	cfg, err := Load(needs...)
	require.NoError(t, err)
	require.NotContains(t, cfg.HTTPAddr, "127.0.0.1", "can't be scraped from outside the container")
	return cfg
}

func TestCompose(t *testing.T) {
	compose := documents[struct {
		Services map[string]struct {
			Image       string
			Command     []string
			Environment map[string]string
			Grace       string `yaml:"stop_grace_period"`
			Restart     string
			ReadOnly    bool `yaml:"read_only"`
			Secrets     []string
			DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
			Healthcheck *struct{ Test []string }
		}
		Secrets map[string]struct{ File string }
	}](t, filepath.Join(deploy, "compose.yaml"))[0]

	for name, service := range compose.Services {
		require.Regexp(t, `^[a-z/-]+:([0-9v][0-9.]*|\$\{VERSION:-dev\})$`, service.Image, name)
		require.NotEmpty(t, service.Restart, name)
		for other, on := range service.DependsOn {
			require.Contains(t, compose.Services, other, name)
			require.Equal(t, on.Condition == "service_healthy", compose.Services[other].Healthcheck != nil, "%s depends on %s", name, other)
		}
		for _, secret := range service.Secrets {
			require.NotEmpty(t, compose.Secrets[secret].File, name)
		}
		for variable, value := range service.Environment {
			require.NotRegexp(t, `://[^/]*@`, value, "%s: %s holds a password", name, variable)
		}
	}
	for _, name := range []string{"worker-1", "worker-2"} {
		worker := compose.Services[name]
		require.Equal(t, []string{"run"}, worker.Command)
		require.True(t, worker.ReadOnly)
		require.Contains(t, worker.DependsOn, "migrate")
		cfg := loads(t, worker.Environment, Kafka, Topics, Postgres)
		grace, err := time.ParseDuration(worker.Grace)
		require.NoError(t, err)
		require.Greater(t, grace, cfg.ShutdownTimeout)
	}
	migrate := compose.Services["migrate"]
	require.Equal(t, []string{"migrate", "up"}, migrate.Command)
	environment(t, nil)
	require.Contains(t, migrate.Environment, Prefix+"POSTGRES_URL_FILE")
}

// manifest is what is looked at of a Kubernetes object.
type manifest struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Data     map[string]string
	Spec     struct {
		Selector yaml.Node
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     podSpec
		}
	}
}

type podSpec struct {
	GraceSeconds    int   `yaml:"terminationGracePeriodSeconds"`
	ServiceLinks    *bool `yaml:"enableServiceLinks"`
	SecurityContext struct {
		RunAsNonRoot   bool                  `yaml:"runAsNonRoot"`
		RunAsUser      int                   `yaml:"runAsUser"`
		SeccompProfile struct{ Type string } `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Containers []struct {
		Args    []string
		EnvFrom []struct {
			ConfigMapRef struct{ Name string } `yaml:"configMapRef"`
		} `yaml:"envFrom"`
		Startup   probe `yaml:"startupProbe"`
		Live      probe `yaml:"livenessProbe"`
		Ready     probe `yaml:"readinessProbe"`
		Resources struct{ Requests, Limits map[string]string }
		Security  struct {
			Escalation   *bool                   `yaml:"allowPrivilegeEscalation"`
			ReadOnly     bool                    `yaml:"readOnlyRootFilesystem"`
			Capabilities struct{ Drop []string } `yaml:"capabilities"`
		} `yaml:"securityContext"`
	}
}

type probe struct {
	Get struct{ Path string } `yaml:"httpGet"`
}

func TestKubernetes(t *testing.T) {
	objects := map[string]manifest{}
	paths, err := filepath.Glob(filepath.Join(deploy, "kubernetes", "*.yaml"))
	require.NoError(t, err)
	for _, path := range paths {
		for _, m := range documents[manifest](t, path) {
			require.NotEqual(t, "Secret", m.Kind, "%s would be applied with its example values", path)
			require.Equal(t, m.Kind != "Namespace", m.Metadata.Namespace == "auditsink", path)
			objects[m.Kind] = m
		}
	}
	for _, kind := range []string{"Namespace", "ConfigMap", "Deployment", "Job", "PodDisruptionBudget", "Service"} {
		require.Contains(t, objects, kind)
	}

	settings := objects["ConfigMap"]
	cfg := loads(t, settings.Data, Kafka, Topics, Postgres)
	for _, kind := range []string{"Deployment", "Job"} {
		pod := objects[kind].Spec.Template.Spec
		require.Len(t, pod.Containers, 1)
		require.NotNil(t, pod.ServiceLinks, "%s: Kubernetes would set AUDITSINK_SERVICE_HOST, which is no setting", kind)
		require.False(t, *pod.ServiceLinks)
		container := pod.Containers[0]
		require.Equal(t, settings.Metadata.Name, container.EnvFrom[0].ConfigMapRef.Name)
		require.NotEmpty(t, container.Resources.Requests["memory"])
		require.NotEmpty(t, container.Resources.Limits["memory"])

		// The profile "restricted" of the Pod Security Standards, which the namespace enforces, and a read-only root.
		require.True(t, pod.SecurityContext.RunAsNonRoot)
		require.Positive(t, pod.SecurityContext.RunAsUser)
		require.Equal(t, "RuntimeDefault", pod.SecurityContext.SeccompProfile.Type)
		require.NotNil(t, container.Security.Escalation)
		require.False(t, *container.Security.Escalation)
		require.True(t, container.Security.ReadOnly)
		require.Equal(t, []string{"ALL"}, container.Security.Capabilities.Drop)
	}
	require.Equal(t, []string{"migrate", "up"}, objects["Job"].Spec.Template.Spec.Containers[0].Args)

	worker := objects["Deployment"].Spec.Template
	require.Greater(t, time.Duration(worker.Spec.GraceSeconds)*time.Second, cfg.ShutdownTimeout)
	require.Equal(t, []string{"run"}, worker.Spec.Containers[0].Args)
	require.Equal(t, "/healthz", worker.Spec.Containers[0].Startup.Get.Path)
	require.Equal(t, "/healthz", worker.Spec.Containers[0].Live.Get.Path)
	require.Equal(t, "/readyz", worker.Spec.Containers[0].Ready.Get.Path)
	for _, kind := range []string{"Deployment", "PodDisruptionBudget"} {
		selector := objects[kind].Spec.Selector
		var match struct {
			Labels map[string]string `yaml:"matchLabels"`
		}
		require.NoError(t, selector.Decode(&match), kind)
		require.Equal(t, worker.Metadata.Labels, match.Labels, kind)
	}
	var match map[string]string
	selector := objects["Service"].Spec.Selector
	require.NoError(t, selector.Decode(&match))
	require.Equal(t, worker.Metadata.Labels, match, "Service")
}

// promtool, of Debian's package prometheus, has the last word on Prometheus's configuration.
func TestPrometheus(t *testing.T) {
	path := filepath.Join(deploy, "prometheus.yml")
	out, err := exec.CommandContext(t.Context(), "promtool", "check", "config", path).CombinedOutput()
	require.NoError(t, err, string(out))
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, worker := range []string{"worker-1:9464", "worker-2:9464"} {
		require.Contains(t, string(content), worker)
	}
}
