package main

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/quintago/webhook-agent/agent/cli"
)

// manifest is what these tests read of an object of Kubernetes.
type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Spec       struct {
		BackoffLimit            *int `yaml:"backoffLimit"`
		TTLSecondsAfterFinished *int `yaml:"ttlSecondsAfterFinished"`
		Template                struct {
			Spec struct {
				RestartPolicy   string         `yaml:"restartPolicy"`
				SecurityContext map[string]any `yaml:"securityContext"`
				InitContainers  []container    `yaml:"initContainers"`
				Containers      []container
			}
		}
	}
}

type container struct {
	Name, Image     string
	Args            []string
	SecurityContext map[string]any `yaml:"securityContext"`
}

// manifests returns the objects of a file.
func manifests(t *testing.T, path string) (all []manifest) {
	t.Helper()
	decoder := yaml.NewDecoder(strings.NewReader(read(t, path)))
	for {
		var m manifest
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, m)
	}
}

func TestDeploy_KubernetesObjectsParseAndRunCommandsThatExist(t *testing.T) {
	files, err := filepath.Glob("deploy/kubernetes*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		ours := 0
		for _, m := range manifests(t, file) {
			if m.APIVersion == "" || m.Kind == "" || m.Metadata.Name == "" {
				t.Errorf("%s: an object lacks its kind or its name: %+v", file, m)
			}
			pod := m.Spec.Template.Spec
			for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
				if !strings.HasPrefix(c.Image, "webhook-agent:") {
					continue
				}
				ours++
				var out, errs bytes.Buffer
				if status := cli.Main(t.Context(), append(c.Args, "--help"), &out, &errs); status != 0 || len(c.Args) == 0 || !strings.Contains(out.String(), "\n  webhook-agent "+c.Args[0]) {
					t.Errorf("%s: webhook-agent %q: status %d, %s", file, c.Args, status, errs.String())
				}
			}
		}
		if ours != 1 {
			t.Errorf("%s has %d containers of the agent", file, ours)
		}
	}
}

func TestDeploy_TheMigrationIsAJobThatMayNoMoreThanTheAgent(t *testing.T) {
	var job, deployment manifest
	for _, m := range append(manifests(t, "deploy/kubernetes-migrate.yaml"), manifests(t, "deploy/kubernetes.yaml")...) {
		switch m.Kind {
		case "Job":
			job = m
		case "Deployment":
			deployment = m
		}
	}
	if job.Spec.BackoffLimit == nil || job.Spec.TTLSecondsAfterFinished == nil || job.Spec.Template.Spec.RestartPolicy != "Never" {
		t.Errorf("the Job does not say how often it tries, when it goes, or that a container is not started again: %+v", job.Spec)
	}
	j, d := job.Spec.Template.Spec, deployment.Spec.Template.Spec
	if len(j.Containers) != 1 || j.Containers[0].Args[0] != "migrate" || j.Containers[0].Image != d.Containers[0].Image {
		t.Errorf("the Job runs %+v", j.Containers)
	}
	if len(j.SecurityContext) == 0 || !reflect.DeepEqual(j.SecurityContext, d.SecurityContext) || !reflect.DeepEqual(j.Containers[0].SecurityContext, d.Containers[0].SecurityContext) {
		t.Errorf("the security contexts differ: %v %v", j, d)
	}
}
