"""Students of armlet in LeRobot: the policy type `armlet`, and armlet's worlds as the environment
type `armlet`. LeRobot imports this module because of its distribution's name.
"""

from .configuration_armlet import ArmletConfig
from .environment_armlet import ArmletEnv
from .modeling_armlet import ArmletPolicy
from .processor_armlet import make_armlet_pre_post_processors

__all__ = ["ArmletConfig", "ArmletEnv", "ArmletPolicy", "make_armlet_pre_post_processors"]
